//! Any sequence of operations, by two stores on the same directory: the ledger says what a walk says.

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

#[derive(Debug, Clone)]
enum Operation {
    Open {
        path: String,
        create: bool,
        truncate: bool,
    },
    /// With any flags, sensible or not.
    OpenOddly {
        path: String,
        follow: bool,
        open: u8,
        flags: u8,
    },
    Close {
        file: usize,
    },
    Write {
        file: usize,
        offset: u64,
        bytes: usize,
    },
    Stream {
        file: usize,
        position: Option<u64>,
        chunks: Vec<usize>,
    },
    /// Opens a stream and keeps it.
    Keep {
        file: usize,
        writes: bool,
    },
    /// Lets go of the stream that was opened first.
    Release {
        writes: bool,
    },
    Resize {
        file: usize,
        size: u64,
    },
    MakeDirectory {
        path: String,
    },
    RemoveDirectory {
        path: String,
    },
    Unlink {
        path: String,
    },
    Rename {
        from: String,
        to: String,
    },
    HardLink {
        from: String,
        to: String,
    },
    Symlink {
        from: String,
        to: String,
    },
    List {
        path: String,
    },
}

/// Few names, so that operations meet; some lead nowhere or out.
fn path() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        8 => "[abc]",
        3 => "[de]/[ab]",
        2 => "[de]",
        1 => "[abde]/",
        1 => prop_oneof![Just("d/../a"), Just("./b"), Just("d/e/a"), Just(".."), Just("../x"), Just("/a"), Just(""), Just("d/.")]
            .prop_map(str::to_owned),
    ];
    (prop::bool::weighted(0.3), name).prop_map(|(tmp, name)| if tmp { format!("tmp:{name}") } else { name })
}

fn operation() -> impl Strategy<Value = Operation> {
    let file = || 0..8_usize;
    let bytes = || 0..40_000_usize;
    let offset = || prop_oneof![20 => 0..60_000_u64, 1 => Just(u64::MAX), 1 => Just(u64::MAX / 2)];
    prop_oneof![
        5 => (path(), any::<bool>(), any::<bool>()).prop_map(|(path, create, truncate)| Operation::Open { path, create, truncate }),
        2 => (path(), any::<bool>(), 0..16_u8, 0..8_u8)
            .prop_map(|(path, follow, open, flags)| Operation::OpenOddly { path, follow, open, flags }),
        3 => file().prop_map(|file| Operation::Close { file }),
        3 => (file(), offset(), bytes()).prop_map(|(file, offset, bytes)| Operation::Write { file, offset, bytes }),
        3 => (file(), proptest::option::of(offset()), proptest::collection::vec(bytes(), 0..4))
            .prop_map(|(file, position, chunks)| Operation::Stream { file, position, chunks }),
        2 => (file(), any::<bool>()).prop_map(|(file, writes)| Operation::Keep { file, writes }),
        1 => any::<bool>().prop_map(|writes| Operation::Release { writes }),
        2 => (file(), 0..150_000_u64).prop_map(|(file, size)| Operation::Resize { file, size }),
        2 => path().prop_map(|path| Operation::MakeDirectory { path }),
        1 => path().prop_map(|path| Operation::RemoveDirectory { path }),
        2 => path().prop_map(|path| Operation::Unlink { path }),
        3 => (path(), path()).prop_map(|(from, to)| Operation::Rename { from, to }),
        2 => (path(), path()).prop_map(|(from, to)| Operation::HardLink { from, to }),
        1 => (path(), path()).prop_map(|(from, to)| Operation::Symlink { from, to }),
        1 => path().prop_map(|path| Operation::List { path }),
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
        Operation::OpenOddly { path, follow, open, flags } => {
            let by = if follow { PathFlags::SYMLINK_FOLLOW } else { PathFlags::empty() };
            let pick = |bits: u8, bit: u8| bits & 1 << bit != 0;
            let all = [OpenFlags::CREATE, OpenFlags::DIRECTORY, OpenFlags::EXCLUSIVE, OpenFlags::TRUNCATE];
            let open = all.into_iter().zip(0..).filter(|(_, bit)| pick(open, *bit)).fold(OpenFlags::empty(), |open, (flag, _)| open | flag);
            let all = [DescriptorFlags::READ, DescriptorFlags::WRITE, DescriptorFlags::MUTATE_DIRECTORY];
            let flags = all
                .into_iter()
                .zip(0..)
                .filter(|(_, bit)| pick(flags, *bit))
                .fold(DescriptorFlags::empty(), |flags, (flag, _)| flags | flag);
            store.open_by(&path, by, open, flags).await
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
        Operation::Keep { file, writes } => {
            let Some(file) = store.file(file) else { return Ok(()) };
            if writes {
                let writer = code(store.view().append_via_stream(file))?;
                store.writers.push(writer);
            } else {
                let reader = code(store.view().read_via_stream(file, 0))?;
                store.readers.push(reader);
            }
            Ok(())
        }
        Operation::Release { writes } => {
            if writes && !store.writers.is_empty() {
                drop(store.table.delete(store.writers.remove(0)).unwrap());
            } else if !writes && !store.readers.is_empty() {
                drop(store.table.delete(store.readers.remove(0)).unwrap());
            }
            Ok(())
        }
        Operation::Resize { file, size } => match store.file(file) {
            Some(file) => code(store.view().set_size(file, size).await),
            None => Ok(()),
        },
        on_paths => change_names(store, on_paths).await,
    }
}

async fn change_names(store: &mut Store, operation: Operation) -> Result<(), ErrorCode> {
    match operation {
        Operation::MakeDirectory { path } => {
            let (root, path) = store.at(&path);
            code(store.view().create_directory_at(root, path).await)
        }
        Operation::RemoveDirectory { path } => {
            let (root, path) = store.at(&path);
            code(store.view().remove_directory_at(root, path).await)
        }
        Operation::Unlink { path } => {
            let (root, path) = store.at(&path);
            code(store.view().unlink_file_at(root, path).await)
        }
        Operation::Rename { from, to } => {
            let ((root, from), (to_root, to)) = (store.at(&from), store.at(&to));
            code(store.view().rename_at(root, from, to_root, to).await)
        }
        Operation::HardLink { from, to } => {
            let ((root, from), (to_root, to)) = (store.at(&from), store.at(&to));
            code(store.view().link_at(root, PathFlags::empty(), from, to_root, to).await)
        }
        Operation::Symlink { from, to } => {
            let ((_, from), (root, to)) = (store.at(&from), store.at(&to));
            code(store.view().symlink_at(root, from, to).await)
        }
        Operation::List { path } => {
            store.open(&path, OpenFlags::DIRECTORY, DescriptorFlags::READ).await?;
            let directory = store.open.pop().unwrap();
            let listed = store.view().read_directory(Resource::new_borrow(directory.rep())).await;
            HostDescriptor::drop(&mut store.view(), directory).unwrap();
            HostDirectoryEntryStream::drop(&mut store.view(), code(listed)?).unwrap();
            Ok(())
        }
        other => unreachable!("{other:?} has no path"),
    }
}

/// Bytes of files and directories that are open and have no name any more. A file is open while any of its streams is.
fn nameless(stores: &[Store]) -> u64 {
    let mut found = HashMap::new();
    for file in stores.iter().flat_map(|store| &store.ever_opened).filter_map(Weak::upgrade) {
        let metadata = file.metadata().unwrap();
        if metadata.nlink() == 0 {
            let least = if metadata.is_dir() { BLOCK } else { 0 };
            found.insert(metadata.ino(), (metadata.len().div_ceil(BLOCK) * BLOCK).max(least));
        }
    }
    found.values().sum()
}

/// Two directories with something in them, and a ledger of both.
struct Disk {
    directories: [tempfile::TempDir; 2],
    ledger: Arc<Ledger>,
}

impl Disk {
    fn new() -> Self {
        let directories = [0; 2].map(|_| tempfile::tempdir().unwrap());
        std::fs::create_dir(directories[0].path().join("d")).unwrap();
        std::fs::write(directories[0].path().join("a"), vec![0; 5000]).unwrap();
        std::fs::hard_link(directories[0].path().join("a"), directories[0].path().join("d/a")).unwrap();
        let ledger = Self::survey_all(&directories);
        Self { directories, ledger }
    }

    fn survey_all(directories: &[tempfile::TempDir; 2]) -> Arc<Ledger> {
        Ledger::open(directories.each_ref().map(tempfile::TempDir::path), LIMIT).unwrap()
    }

    fn store(&self) -> Store {
        Store::new(&self.directories.each_ref().map(tempfile::TempDir::path), &self.ledger, FsPerms::ReadWrite)
    }

    /// Bytes and names that a walk finds, which is also what an instance that is started anew would begin with.
    fn walked(&self) -> (u64, u64) {
        let ledger = Self::survey_all(&self.directories);
        (ledger.bytes().0, ledger.names())
    }

    fn counted(&self) -> (u64, u64) {
        (self.ledger.bytes().0, self.ledger.names())
    }
}

fn check(operations: Vec<(usize, Operation)>) {
    let disk = Disk::new();
    Runtime::new().unwrap().block_on(async {
        let mut stores = [0; 2].map(|_| disk.store());
        for (store, operation) in operations {
            let result = carry_out(&mut stores[store], operation.clone()).await;
            let (bytes, names) = disk.walked();
            assert_eq!(disk.counted(), (bytes + nameless(&stores), names), "after {operation:?}: {result:?}");
            assert!(disk.counted().0 <= LIMIT.bytes && names <= LIMIT.inodes, "after {operation:?}");
        }
        drop(stores);
        assert_eq!(disk.counted(), disk.walked(), "with everything closed");
    });
}

/// All stores at once, each on its own thread as far as there are any.
fn check_side_by_side(operations: [Vec<Operation>; 3]) {
    let disk = Disk::new();
    Runtime::new().unwrap().block_on(async {
        let tasks = operations.map(|operations| {
            let mut store = disk.store();
            let ledger = disk.ledger.clone();
            tokio::spawn(async move {
                for operation in operations {
                    let _ = carry_out(&mut store, operation).await;
                    assert!(ledger.bytes().0 <= LIMIT.bytes && ledger.names() <= LIMIT.inodes);
                }
                store
            })
        });
        let mut stores = Vec::new();
        for task in tasks {
            stores.push(task.await.unwrap());
        }
        let (bytes, names) = disk.walked();
        assert_eq!(disk.counted(), (bytes + nameless(&stores), names), "while files are open");
        drop(stores);
        assert_eq!(disk.counted(), disk.walked(), "with everything closed");
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, max_shrink_iters: 300, ..ProptestConfig::default() })]

    #[test]
    fn the_ledger_says_what_a_walk_says(operations in proptest::collection::vec((0..2_usize, operation()), 1..60)) {
        check(operations);
    }

    #[test]
    fn also_when_stores_work_at_the_same_time(
        operations in proptest::array::uniform3(proptest::collection::vec(operation(), 1..40)),
    ) {
        check_side_by_side(operations);
    }
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
