//! `/fs/…`: paths as they are, given to the host without a C library between. All of them start at `/tmp`.

use std::cell::RefCell;

use dewar_guest::wasip2::filesystem::preopens::get_directories;
use dewar_guest::wasip2::filesystem::types::{Descriptor, DescriptorFlags, ErrorCode, OpenFlags, PathFlags};

use crate::Query;

thread_local! {
    static HELD: RefCell<Vec<Descriptor>> = const { RefCell::new(Vec::new()) };
}

/// `done`, or what the host says.
pub(crate) fn answer(operation: &str, query: &Query) -> String {
    let directories = get_directories();
    let of = |root: &str| directories.iter().find(|(_, path)| path == root).map(|(directory, _)| directory).expect("it is there");
    let (tmp, app) = (of("/tmp"), of("/app"));
    let path = query.text("path");
    let outcome = match operation {
        "open" => open(tmp, path, OpenFlags::empty()).map(drop),
        "create" => open(tmp, path, OpenFlags::CREATE).map(drop),
        "create-dir" => tmp.create_directory_at(path),
        "link" => tmp.link_at(PathFlags::empty(), path, tmp, query.text("to")),
        "rename" => tmp.rename_at(path, tmp, query.text("to")),
        "rename-to-app" => tmp.rename_at(path, app, query.text("to")),
        "symlink" => tmp.symlink_at(path, query.text("to")),
        "stat" => tmp.stat_at(PathFlags::SYMLINK_FOLLOW, path).map(drop),
        "list" => return list(tmp, path),
        "remove" => tmp.unlink_file_at(path),
        "remove-dir" => tmp.remove_directory_at(path),
        "set-size" => open(tmp, path, OpenFlags::CREATE).and_then(|file| file.set_size(query.number("size"))),
        "write-at" => open(tmp, path, OpenFlags::CREATE).and_then(|file| file.write(b"x", query.number("offset"))).map(drop),
        "read-at" => open(tmp, path, OpenFlags::CREATE).and_then(|file| file.read(query.number("bytes"), query.number("offset"))).map(drop),
        "deep" => return deep(tmp, path, query.number("limit")),
        "hold" => return hold(tmp, query.number("count"), query.number("bytes")),
        _ => panic!("{operation}: no such operation"),
    };
    outcome.map_or_else(|error| error.name().to_owned(), |()| "done".to_owned())
}

fn open(directory: &Descriptor, path: &str, open: OpenFlags) -> Result<Descriptor, ErrorCode> {
    let mut flags = DescriptorFlags::READ;
    if open.contains(OpenFlags::CREATE) {
        flags |= DescriptorFlags::WRITE;
    }
    directory.open_at(PathFlags::SYMLINK_FOLLOW, path, open, flags)
}

/// How many entries a directory has.
fn list(directory: &Descriptor, path: &str) -> String {
    let entries = directory.open_at(PathFlags::SYMLINK_FOLLOW, path, OpenFlags::DIRECTORY, DescriptorFlags::READ);
    let counted = entries.and_then(|directory| directory.read_directory()).and_then(|entries| {
        let mut count = 0;
        while entries.read_directory_entry()?.is_some() {
            count += 1;
        }
        Ok(count)
    });
    counted.map_or_else(|error| error.name().to_owned(), |count: u64| count.to_string())
}

/// Directories within directories, until refused; each is opened, so that no path gets too long.
fn deep(root: &Descriptor, name: &str, limit: u64) -> String {
    let mut directory = None::<Descriptor>;
    for depth in 0..limit {
        let parent = directory.as_ref().unwrap_or(root);
        let child = parent.create_directory_at(name).and_then(|()| {
            parent.open_at(PathFlags::empty(), name, OpenFlags::DIRECTORY, DescriptorFlags::READ | DescriptorFlags::MUTATE_DIRECTORY)
        });
        match child {
            Ok(child) => directory = Some(child),
            Err(error) => return format!("{depth} {}", error.name()),
        }
    }
    limit.to_string()
}

/// Files that are open and have no name, as many as there may be.
fn hold(directory: &Descriptor, count: u64, bytes: u64) -> String {
    let block = vec![b'x'; usize::try_from(bytes).unwrap_or(usize::MAX)];
    for held in 0..count {
        let file = open(directory, "held", OpenFlags::CREATE | OpenFlags::EXCLUSIVE).and_then(|file| {
            directory.unlink_file_at("held")?;
            file.write(&block, 0).map(|_| file)
        });
        match file {
            Ok(file) => HELD.with_borrow_mut(|files| files.push(file)),
            Err(error) => return format!("{held} {}", error.name()),
        }
    }
    count.to_string()
}
