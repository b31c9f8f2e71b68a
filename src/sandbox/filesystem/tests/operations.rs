//! Any sequence of operations, by several stores on the same directories: the ledger says what a walk says.

use super::*;

#[derive(Debug, Clone)]
pub(super) enum Operation {
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

pub(super) async fn carry_out(store: &mut Store, operation: Operation) -> Result<(), ErrorCode> {
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
