//! The file system as a store sees it, and what the ledger says of it.

mod operations;

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Weak;

use proptest::prelude::*;
use tokio::runtime::Runtime;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::p2::bindings::filesystem::preopens::Host as Preopens;
use wasmtime_wasi::p2::bindings::filesystem::types::HostDirectoryEntryStream;
use wasmtime_wasi::p2::{DynInputStream, StreamError};
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder};

use self::operations::{Operation, carry_out};
use super::*;
use crate::ledger::{DiskLimit, survey};

const LIMIT: DiskLimit = DiskLimit { bytes: 24 * BLOCK, inodes: 8 };

/// One store on `/app` and `/tmp`, with what it has open.
struct Store {
    wasi: WasiCtx,
    table: ResourceTable,
    files: CountedFiles,
    roots: Vec<Resource<Descriptor>>,
    open: Vec<Resource<Descriptor>>,
    readers: Vec<Resource<DynInputStream>>,
    writers: Vec<Resource<DynOutputStream>>,
    /// Everything that was ever opened; what is still open is still there.
    ever_opened: Vec<Weak<File>>,
}

impl Store {
    fn new(directories: &[&Path], ledger: &Arc<Ledger>, perms: FsPerms) -> Self {
        let mut wasi = WasiCtxBuilder::new();
        for (directory, name) in directories.iter().zip(["/app", "/tmp"]) {
            wasi.preopened_dir(directory, name, perms).unwrap();
        }
        let mut wasi = wasi.build();
        let mut table = ResourceTable::new();
        let mut view = WasiFilesystemCtxView { ctx: wasi.filesystem(), table: &mut table };
        let roots = Preopens::get_directories(&mut view).unwrap().into_iter().map(|(root, _)| root).collect();
        let files = CountedFiles::new(ledger.clone(), handles(), memory());
        Self { wasi, table, files, roots, open: Vec::new(), readers: Vec::new(), writers: Vec::new(), ever_opened: Vec::new() }
    }

    fn view(&mut self) -> CountedFilesystem<'_> {
        let inner = WasiFilesystemCtxView { ctx: self.wasi.filesystem(), table: &mut self.table };
        CountedFilesystem { inner, files: &mut self.files }
    }

    /// `tmp:PATH` is a path in the second directory, when there are two; all others are in the first.
    fn at(&self, path: &str) -> (Resource<Descriptor>, String) {
        let (root, path) = path.strip_prefix("tmp:").map_or((0, path), |path| (self.roots.len() - 1, path));
        (Resource::new_borrow(self.roots[root].rep()), path.to_owned())
    }

    fn root(&self) -> Resource<Descriptor> {
        self.at("").0
    }

    fn file(&self, choice: usize) -> Option<Resource<Descriptor>> {
        let file = self.open.get(choice.checked_rem(self.open.len())?)?;
        Some(Resource::new_borrow(file.rep()))
    }

    async fn open(&mut self, path: &str, open: OpenFlags, flags: DescriptorFlags) -> Result<(), ErrorCode> {
        self.open_by(path, PathFlags::SYMLINK_FOLLOW, open, flags).await
    }

    async fn open_by(&mut self, path: &str, by: PathFlags, open: OpenFlags, flags: DescriptorFlags) -> Result<(), ErrorCode> {
        let (root, path) = self.at(path);
        let opened = code(self.view().open_at(root, by, path, open, flags).await)?;
        let entered = self.view().entered(&opened);
        self.ever_opened.extend(entered.map(|entered| Arc::downgrade(&entered.file)));
        self.open.push(opened);
        Ok(())
    }
}

fn handles() -> Arc<Handles> {
    struct Deaf;
    impl crate::Output for Deaf {
        fn line(&self, _stream: dewar_protocol::LogStream, _text: &str) {}
    }
    Handles::new(64, crate::output::Log::new(Arc::new(Deaf)))
}

fn memory() -> Arc<MemoryBudget> {
    MemoryBudget::new(dewar_protocol::Bytes(1 << 30))
}

fn code<T>(result: FsResult<T>) -> Result<T, ErrorCode> {
    result.map_err(|error| error.downcast().expect("an error code, no trap"))
}

#[test]
fn a_full_disk_is_insufficient_space_and_a_short_write_writes_what_fits() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = Ledger::open([directory.path()], LIMIT).unwrap();
    Runtime::new().unwrap().block_on(async {
        let mut store = Store::new(&[directory.path()], &ledger, FsPerms::ReadWrite);
        let flags = DescriptorFlags::READ | DescriptorFlags::WRITE;
        store.open("a", OpenFlags::CREATE, flags).await.unwrap();
        let file = || Resource::new_borrow(store.open[0].rep());
        let (first, second, third) = (file(), file(), file());
        let offset = LIMIT.bytes - 10;
        assert_eq!(code(store.view().write(first, vec![0; 100], offset).await), Ok(10), "short, as POSIX has it");
        assert_eq!(code(store.view().write(second, vec![0; 100], LIMIT.bytes).await), Err(ErrorCode::InsufficientSpace));
        assert!(ledger.has_refused());
        assert_eq!(code(store.view().append_via_stream(third)).err(), Some(ErrorCode::InsufficientSpace));
        assert_eq!(store.open("b", OpenFlags::CREATE, flags).await, Ok(()), "a name costs no bytes");
        let root = store.root();
        assert_eq!(code(store.view().create_directory_at(root, "c".into()).await), Err(ErrorCode::InsufficientSpace));
    });
}

#[test]
fn a_stream_that_outlives_its_descriptor_keeps_the_file_charged() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = Ledger::open([directory.path()], LIMIT).unwrap();
    Runtime::new().unwrap().block_on(async {
        let mut store = Store::new(&[directory.path()], &ledger, FsPerms::ReadWrite);
        for path in ["reading", "writing"] {
            store.open(path, OpenFlags::CREATE, DescriptorFlags::READ | DescriptorFlags::WRITE).await.unwrap();
            let file = store.file(0).unwrap();
            code(store.view().set_size(file, 2 * BLOCK).await).unwrap();
            let file = store.file(0).unwrap();
            let stream = if path == "reading" {
                code(store.view().read_via_stream(file, 0)).unwrap().rep()
            } else {
                code(store.view().write_via_stream(file, 0)).unwrap().rep()
            };
            carry_out(&mut store, Operation::Close { file: 0 }).await.unwrap();
            carry_out(&mut store, Operation::Unlink { path: path.into() }).await.unwrap();
            assert_eq!((ledger.bytes().0, ledger.names()), (2 * BLOCK, 0), "{path}: no name, but held");
            if path == "reading" {
                drop(store.table.delete(Resource::<DynInputStream>::new_own(stream)).unwrap());
            } else {
                drop(store.table.delete(Resource::<DynOutputStream>::new_own(stream)).unwrap());
            }
            assert_eq!(ledger.bytes().0, 0, "{path}: let go");
        }
    });
}

#[test]
fn what_is_read_only_is_neither_changed_nor_counted() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("a"), "text").unwrap();
    let ledger = Ledger::open([], LIMIT).unwrap();
    Runtime::new().unwrap().block_on(async {
        let mut store = Store::new(&[directory.path()], &ledger, FsPerms::ReadOnly);
        store.open("a", OpenFlags::empty(), DescriptorFlags::READ).await.unwrap();
        let file = store.file(0).unwrap();
        assert_eq!(code(store.view().read(file, 10, 0).await).unwrap().0, b"text");
        let refused = [
            Operation::Open { path: "a".into(), create: false, truncate: true },
            Operation::Open { path: "b".into(), create: true, truncate: false },
            Operation::Unlink { path: "a".into() },
            Operation::Rename { from: "a".into(), to: "b".into() },
            Operation::HardLink { from: "a".into(), to: "b".into() },
            Operation::Symlink { from: "a".into(), to: "b".into() },
            Operation::MakeDirectory { path: "c".into() },
            Operation::Resize { file: 0, size: 0 },
            Operation::Stream { file: 0, position: None, chunks: vec![1] },
            Operation::Write { file: 0, offset: 0, bytes: 1 },
        ];
        for operation in refused {
            assert_eq!(carry_out(&mut store, operation.clone()).await, Err(ErrorCode::NotPermitted), "{operation:?}");
        }
        drop(store);
        assert_eq!((ledger.bytes().0, ledger.names()), (0, 0));
    });
}

#[test]
fn who_opens_a_file_while_its_name_goes_does_not_give_it_back_twice() {
    let directory = tempfile::tempdir().unwrap();
    // Without it there would be nothing that could be given back too often.
    std::fs::write(directory.path().join("stays"), vec![0; 15 * usize::try_from(BLOCK).unwrap()]).unwrap();
    let ledger = Ledger::open([directory.path()], LIMIT).unwrap();
    Runtime::new().unwrap().block_on(async {
        let mut stores = [0; 2].map(|_| Store::new(&[directory.path()], &ledger, FsPerms::ReadWrite));
        let [maker, opener] = &mut stores;
        for _ in 0..500 {
            let make_and_remove = async {
                carry_out(maker, Operation::Open { path: "a".into(), create: true, truncate: false }).await.unwrap();
                carry_out(maker, Operation::Write { file: 0, offset: 0, bytes: 5000 }).await.unwrap();
                carry_out(maker, Operation::Close { file: 0 }).await.unwrap();
                carry_out(maker, Operation::Unlink { path: "a".into() }).await.unwrap();
            };
            let open_and_close = async {
                for _ in 0..4 {
                    // It may be there or not.
                    let _ = carry_out(opener, Operation::Open { path: "a".into(), create: false, truncate: false }).await;
                    carry_out(opener, Operation::Close { file: 0 }).await.unwrap();
                }
            };
            tokio::join!(make_and_remove, open_and_close);
        }
        drop(stores);
        assert_eq!((ledger.bytes().0, ledger.names()), (15 * BLOCK, 1));
    });
}

#[test]
fn a_directory_that_has_grown_costs_what_it_takes() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = Ledger::open([directory.path()], DiskLimit { bytes: 64 * BLOCK, inodes: 100_000 }).unwrap();
    Runtime::new().unwrap().block_on(async {
        let mut store = Store::new(&[directory.path()], &ledger, FsPerms::ReadWrite);
        carry_out(&mut store, Operation::MakeDirectory { path: "d".into() }).await.unwrap();
        carry_out(&mut store, Operation::Symlink { from: "d".into(), to: "link".into() }).await.unwrap();
        // Long names, in the directory itself and through a link to it: 200 of them fill more than ten blocks.
        let name = |index: usize| format!("{}/{index}-{}", if index.is_multiple_of(2) { "d" } else { "link" }, "x".repeat(240));
        for index in 0..200 {
            carry_out(&mut store, Operation::Open { path: name(index), create: true, truncate: false }).await.unwrap();
            carry_out(&mut store, Operation::Close { file: 0 }).await.unwrap();
        }
        let length = || std::fs::metadata(directory.path().join("d")).unwrap().len();
        if length() <= BLOCK {
            // This file system keeps directories elsewhere.
            return;
        }
        let walked = || survey([directory.path()]).unwrap();
        assert_eq!((ledger.bytes().0, ledger.names()), walked());
        for index in 0..200 {
            carry_out(&mut store, Operation::Unlink { path: name(index) }).await.unwrap();
        }
        assert_eq!((ledger.bytes().0, ledger.names()), walked(), "empty, and as long as before");
        assert!(ledger.bytes().0 >= length(), "{:?}", ledger.bytes());
        // Held open it keeps its blocks after it has lost its name.
        store.open("d", OpenFlags::DIRECTORY, DescriptorFlags::READ).await.unwrap();
        carry_out(&mut store, Operation::RemoveDirectory { path: "d".into() }).await.unwrap();
        assert!(ledger.bytes().0 > 10 * BLOCK, "{:?}", ledger.bytes());
        carry_out(&mut store, Operation::Close { file: 0 }).await.unwrap();
        assert_eq!((ledger.bytes().0, ledger.names()), walked());
    });
}

#[test]
fn directories_cannot_be_blown_up_beyond_the_quota() {
    let directory = tempfile::tempdir().unwrap();
    let limit = 16 * BLOCK;
    let ledger = Ledger::open([directory.path()], DiskLimit { bytes: limit, inodes: 1000 }).unwrap();
    Runtime::new().unwrap().block_on(async {
        let mut store = Store::new(&[directory.path()], &ledger, FsPerms::ReadWrite);
        // Names come and go, directories stay as long as they have become.
        let mut refused = false;
        for round in 0..40 {
            let directory = format!("d{round}");
            refused |= carry_out(&mut store, Operation::MakeDirectory { path: directory.clone() }).await.is_err();
            for index in 0..50 {
                let path = format!("{directory}/{index}-{}", "x".repeat(240));
                if carry_out(&mut store, Operation::Open { path: path.clone(), create: true, truncate: false }).await.is_ok() {
                    carry_out(&mut store, Operation::Close { file: 0 }).await.unwrap();
                }
                if index % 25 == 24 {
                    for index in index - 24..=index {
                        let path = format!("{directory}/{index}-{}", "x".repeat(240));
                        let _ = carry_out(&mut store, Operation::Unlink { path }).await;
                    }
                }
            }
        }
        assert!(refused);
        let (bytes, names) = survey([directory.path()]).unwrap();
        assert_eq!((ledger.bytes().0, ledger.names()), (bytes, names));
        assert!(bytes <= limit + 3 * BLOCK, "{bytes}");
    });
}

#[test]
fn a_directory_that_was_over_its_quota_before_takes_nothing_until_it_is_emptied() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("large"), vec![0; 200_000]).unwrap();
    // A hole counts like any other part of a file.
    File::create(directory.path().join("sparse")).unwrap().set_len(1 << 40).unwrap();
    let ledger = Ledger::open([directory.path()], LIMIT).unwrap();
    assert_eq!((ledger.bytes().0, ledger.names()), ((1 << 40) + 49 * BLOCK, 2));
    Runtime::new().unwrap().block_on(async {
        let mut store = Store::new(&[directory.path()], &ledger, FsPerms::ReadWrite);
        let create = || Operation::Open { path: "new".into(), create: true, truncate: false };
        let full = Err(ErrorCode::InsufficientSpace);
        assert_eq!(carry_out(&mut store, create()).await, full);
        assert_eq!(carry_out(&mut store, Operation::MakeDirectory { path: "d".into() }).await, full);
        carry_out(&mut store, Operation::Open { path: "large".into(), create: false, truncate: false }).await.unwrap();
        assert_eq!(carry_out(&mut store, Operation::Write { file: 0, offset: 0, bytes: 10 }).await, Ok(()), "it gets no longer");
        // What is left of its last block is paid for.
        assert_eq!(carry_out(&mut store, Operation::Stream { file: 0, position: None, chunks: vec![5000, 1] }).await, full);
        carry_out(&mut store, Operation::Unlink { path: "sparse".into() }).await.unwrap();
        assert_eq!(carry_out(&mut store, create()).await, full, "still over");
        carry_out(&mut store, Operation::Resize { file: 0, size: 1 }).await.unwrap();
        assert_eq!(carry_out(&mut store, create()).await, Ok(()));
        assert_eq!((ledger.bytes().0, ledger.names()), survey([directory.path()]).unwrap());
    });
}

#[test]
fn a_file_that_is_made_without_room_for_its_handle_is_counted() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = Ledger::open([directory.path()], LIMIT).unwrap();
    Runtime::new().unwrap().block_on(async {
        let mut store = Store::new(&[directory.path()], &ledger, FsPerms::ReadWrite);
        store.table.set_max_capacity(1);
        let root = store.root();
        let flags = DescriptorFlags::READ | DescriptorFlags::WRITE;
        let trapped = store.view().open_at(root, PathFlags::empty(), "a".into(), OpenFlags::CREATE, flags).await;
        assert!(trapped.is_err_and(|error| error.downcast().is_err()), "a trap, no error code");
        assert!(directory.path().join("a").exists());
        assert_eq!((ledger.bytes().0, ledger.names()), survey([directory.path()]).unwrap());
    });
}
