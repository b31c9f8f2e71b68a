//! Any sequence of operations, by two stores on the same directory: the ledger says what a walk says.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use proptest::prelude::*;
use tokio::runtime::Runtime;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::p2::StreamError;
use wasmtime_wasi::p2::bindings::filesystem::preopens::Host as Preopens;
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder};

use super::*;
use crate::ledger::{DiskLimit, survey};

const LIMIT: DiskLimit = DiskLimit { bytes: 24 * BLOCK, inodes: 8 };

/// One store, with the files that it has open.
struct Store {
    wasi: WasiCtx,
    table: ResourceTable,
    files: CountedFiles,
    root: Resource<Descriptor>,
    open: Vec<Resource<Descriptor>>,
}

impl Store {
    fn new(directory: &Path, ledger: &Arc<Ledger>, perms: FsPerms) -> Self {
        let mut wasi = WasiCtxBuilder::new().preopened_dir(directory, "/", perms).unwrap().build();
        let mut table = ResourceTable::new();
        let mut view = WasiFilesystemCtxView { ctx: wasi.filesystem(), table: &mut table };
        let (root, _) = Preopens::get_directories(&mut view).unwrap().remove(0);
        Self { wasi, table, files: CountedFiles::new(ledger.clone(), handles(), memory()), root, open: Vec::new() }
    }

    fn view(&mut self) -> CountedFilesystem<'_> {
        let inner = WasiFilesystemCtxView { ctx: self.wasi.filesystem(), table: &mut self.table };
        CountedFilesystem { inner, files: &mut self.files }
    }

    fn root(&self) -> Resource<Descriptor> {
        Resource::new_borrow(self.root.rep())
    }

    fn file(&self, choice: usize) -> Option<Resource<Descriptor>> {
        let file = self.open.get(choice.checked_rem(self.open.len())?)?;
        Some(Resource::new_borrow(file.rep()))
    }

    async fn open(&mut self, path: &str, open: OpenFlags, flags: DescriptorFlags) -> Result<(), ErrorCode> {
        let root = self.root();
        let opened = code(self.view().open_at(root, PathFlags::SYMLINK_FOLLOW, path.into(), open, flags).await)?;
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

#[derive(Debug, Clone)]
enum Operation {
    Open { path: String, create: bool, truncate: bool },
    Close { file: usize },
    Write { file: usize, offset: u64, bytes: usize },
    Stream { file: usize, position: Option<u64>, chunks: Vec<usize> },
    Resize { file: usize, size: u64 },
    MakeDirectory { path: String },
    RemoveDirectory { path: String },
    Unlink { path: String },
    Rename { from: String, to: String },
    HardLink { from: String, to: String },
    Symlink { from: String, to: String },
}

fn path() -> impl Strategy<Value = String> {
    prop_oneof![4 => "[abc]", 1 => "d/[ab]", 1 => Just("d".to_owned())]
}

fn operation() -> impl Strategy<Value = Operation> {
    let file = || 0..8_usize;
    let bytes = || 0..40_000_usize;
    let offset = || 0..60_000_u64;
    prop_oneof![
        5 => (path(), any::<bool>(), any::<bool>()).prop_map(|(path, create, truncate)| Operation::Open { path, create, truncate }),
        3 => file().prop_map(|file| Operation::Close { file }),
        3 => (file(), offset(), bytes()).prop_map(|(file, offset, bytes)| Operation::Write { file, offset, bytes }),
        3 => (file(), proptest::option::of(offset()), proptest::collection::vec(bytes(), 0..4))
            .prop_map(|(file, position, chunks)| Operation::Stream { file, position, chunks }),
        2 => (file(), 0..150_000_u64).prop_map(|(file, size)| Operation::Resize { file, size }),
        1 => path().prop_map(|path| Operation::MakeDirectory { path }),
        1 => path().prop_map(|path| Operation::RemoveDirectory { path }),
        2 => path().prop_map(|path| Operation::Unlink { path }),
        2 => (path(), path()).prop_map(|(from, to)| Operation::Rename { from, to }),
        1 => (path(), path()).prop_map(|(from, to)| Operation::HardLink { from, to }),
        1 => ("[abc]", path()).prop_map(|(from, to)| Operation::Symlink { from, to }),
    ]
}

/// Writes chunks as a guest does, until one fails.
async fn stream(store: &mut Store, stream: Resource<DynOutputStream>, chunks: &[usize]) -> Result<(), ErrorCode> {
    let mut stream: DynOutputStream = store.table.delete(stream).unwrap();
    for chunk in chunks {
        stream.ready().await;
        let written = match stream.check_write() {
            Ok(permit) => stream.write(vec![b'x'; (*chunk).min(permit)].into()),
            Err(error) => Err(error),
        };
        stream.ready().await;
        match written.and_then(|()| stream.flush()) {
            Ok(()) => {}
            Err(StreamError::LastOperationFailed(error)) => {
                let error = error.downcast_ref::<std::io::Error>().expect("an error of the operating system");
                return Err(ErrorCode::from(error));
            }
            Err(error) => panic!("{error}"),
        }
    }
    Ok(())
}

async fn carry_out(store: &mut Store, operation: Operation) -> Result<(), ErrorCode> {
    let root = store.root();
    match operation {
        Operation::Open { path, create, truncate } => {
            let mut open = OpenFlags::empty();
            if create {
                open |= OpenFlags::CREATE;
            }
            if truncate {
                open |= OpenFlags::TRUNCATE;
            }
            store.open(&path, open, DescriptorFlags::READ | DescriptorFlags::WRITE).await
        }
        Operation::Close { file } => {
            if !store.open.is_empty() {
                let file = store.open.swap_remove(file % store.open.len());
                HostDescriptor::drop(&mut store.view(), file).unwrap();
            }
            Ok(())
        }
        Operation::Write { file, offset, bytes } => match store.file(file) {
            Some(file) => code(store.view().write(file, vec![b'x'; bytes], offset).await).map(drop),
            None => Ok(()),
        },
        Operation::Stream { file, position, chunks } => {
            let Some(file) = store.file(file) else { return Ok(()) };
            let opened = match position {
                Some(offset) => store.view().write_via_stream(file, offset),
                None => store.view().append_via_stream(file),
            };
            stream(store, code(opened)?, &chunks).await
        }
        Operation::Resize { file, size } => match store.file(file) {
            Some(file) => code(store.view().set_size(file, size).await),
            None => Ok(()),
        },
        Operation::MakeDirectory { path } => code(store.view().create_directory_at(root, path).await),
        Operation::RemoveDirectory { path } => code(store.view().remove_directory_at(root, path).await),
        Operation::Unlink { path } => code(store.view().unlink_file_at(root, path).await),
        Operation::Rename { from, to } => {
            let to_root = store.root();
            code(store.view().rename_at(root, from, to_root, to).await)
        }
        Operation::HardLink { from, to } => {
            let to_root = store.root();
            code(store.view().link_at(root, PathFlags::empty(), from, to_root, to).await)
        }
        Operation::Symlink { from, to } => code(store.view().symlink_at(root, from, to).await),
    }
}

/// Bytes of files that are open and have no name any more.
fn nameless(stores: &[Store]) -> u64 {
    let mut found = HashMap::new();
    for file in stores.iter().flat_map(|store| store.files.open.values()).filter_map(|opened| opened.entered.as_ref()) {
        let metadata = file.file.metadata().unwrap();
        if metadata.nlink() == 0 {
            found.insert(metadata.ino(), metadata.len().div_ceil(BLOCK) * BLOCK);
        }
    }
    found.values().sum()
}

fn check(operations: Vec<(usize, Operation)>) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("d")).unwrap();
    std::fs::write(directory.path().join("a"), vec![0; 5000]).unwrap();
    let ledger = Ledger::open([directory.path()], LIMIT).unwrap();
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        let mut stores = [0; 2].map(|_| Store::new(directory.path(), &ledger, FsPerms::ReadWrite));
        for (store, operation) in operations {
            let result = carry_out(&mut stores[store], operation.clone()).await;
            let (bytes, names) = survey(directory.path()).unwrap();
            let expected = (bytes + nameless(&stores), names);
            assert_eq!((ledger.bytes().0, ledger.names()), expected, "after {operation:?}: {result:?}");
            assert!(ledger.bytes().0 <= LIMIT.bytes && ledger.names() <= LIMIT.inodes, "after {operation:?}");
        }
        drop(stores);
        assert_eq!((ledger.bytes().0, ledger.names()), survey(directory.path()).unwrap(), "with everything closed");
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn the_ledger_says_what_a_walk_says(operations in proptest::collection::vec((0..2_usize, operation()), 1..50)) {
        check(operations);
    }
}

#[test]
fn a_full_disk_is_insufficient_space_and_a_short_write_writes_what_fits() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = Ledger::open([directory.path()], LIMIT).unwrap();
    Runtime::new().unwrap().block_on(async {
        let mut store = Store::new(directory.path(), &ledger, FsPerms::ReadWrite);
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
        let mut store = Store::new(directory.path(), &ledger, FsPerms::ReadWrite);
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
        let mut store = Store::new(directory.path(), &ledger, FsPerms::ReadOnly);
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
        let mut stores = [0; 2].map(|_| Store::new(directory.path(), &ledger, FsPerms::ReadWrite));
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
