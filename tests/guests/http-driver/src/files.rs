//! `/fs/…`: one file system operation a request.

use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use dewar_guest::{IntoResponse, Request, Response};

use crate::query::Query;
use crate::{Answer, Refusal, lines, text};

thread_local! {
    static HELD: RefCell<Vec<File>> = const { RefCell::new(Vec::new()) };
}

pub(crate) fn answer(operation: &str, query: &Query, request: Request) -> Answer {
    if operation == "release" {
        HELD.take();
        return text("released");
    }
    let path = Path::new(query.text("path")?);
    match operation {
        "read" => Ok(Response::new(fs::read(path)?.into())),
        "write" => write(File::create(path)?, query, request),
        "append" => write(OpenOptions::new().append(true).create(true).open(path)?, query, request),
        "write-at" => {
            let mut file = OpenOptions::new().write(true).open(path)?;
            file.seek(SeekFrom::Start(query.number("offset")?))?;
            write(file, query, request)
        }
        "truncate" => done(OpenOptions::new().write(true).open(path)?.set_len(query.number("size")?)),
        "fill" => fill(path, query.number("chunk")?),
        "fill-inodes" => fill_inodes(path, query.number("limit")?),
        "list" => list(path),
        "stat" => Ok(describe(path)?.into_response()),
        "create-dir" => done(fs::create_dir(path)),
        "remove-dir" => done(fs::remove_dir(path)),
        "remove" => done(fs::remove_file(path)),
        "rename" => done(fs::rename(path, query.text("to")?)),
        "hard-link" => done(fs::hard_link(path, query.text("to")?)),
        "symlink" => done(symlink(path, Path::new(query.text("to")?))),
        "read-link" => Ok(fs::read_link(path)?.display().to_string().into_response()),
        "hold" => hold(path, query.number("bytes")?),
        "open-many" => open_many(path, query.number("count")?),
        _ => Err(Refusal::UnknownPath),
    }
}

fn done(result: io::Result<()>) -> Answer {
    result?;
    text("done")
}

fn write(mut file: File, query: &Query, request: Request) -> Answer {
    let written = match query.number("bytes") {
        Ok(bytes) => io::copy(&mut io::repeat(b'x').take(bytes), &mut file)?,
        Err(_) => io::copy(&mut request.into_body(), &mut file)?,
    };
    file.sync_all()?;
    text(&written.to_string())
}

fn fill(path: &Path, chunk: u64) -> Answer {
    let mut file = OpenOptions::new().append(true).create(true).open(path)?;
    let chunk = vec![b'x'; usize::try_from(chunk).unwrap_or(usize::MAX).clamp(1, 1024 * 1024)];
    let mut written = 0;
    loop {
        match file.write(&chunk) {
            Ok(length) => written += length,
            Err(error) => return refused_after(written, error),
        }
    }
}

fn fill_inodes(directory: &Path, limit: u64) -> Answer {
    for created in 0..limit {
        if let Err(error) = File::create_new(directory.join(created.to_string())) {
            return refused_after(created, error);
        }
    }
    text(&format!("{limit}\n"))
}

fn open_many(path: &Path, count: u64) -> Answer {
    let mut files = Vec::new();
    for opened in 0..count {
        match File::open(path) {
            Ok(file) => files.push(file),
            Err(error) => return refused_after(opened, error),
        }
    }
    text(&format!("{count}\n"))
}

fn refused_after(count: impl std::fmt::Display, error: io::Error) -> Answer {
    text(&format!("{count}\n{:?}: {error}\n", error.kind()))
}

fn list(path: &Path) -> Answer {
    let mut entries = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let description = describe(&entry.path())?;
        let (kind, size) = description.split_at(1);
        entries.push(format!("{kind} {}{size}", entry.file_name().to_string_lossy()));
    }
    entries.sort();
    lines(entries.into_iter())
}

fn describe(path: &Path) -> io::Result<String> {
    let metadata = fs::symlink_metadata(path)?;
    Ok(match metadata {
        _ if metadata.is_symlink() => "l".to_owned(),
        _ if metadata.is_dir() => "d".to_owned(),
        _ => format!("f {}", metadata.len()),
    })
}

fn hold(path: &Path, bytes: u64) -> Answer {
    let mut file = File::create(path)?;
    io::copy(&mut io::repeat(b'x').take(bytes), &mut file)?;
    fs::remove_file(path)?;
    HELD.with_borrow_mut(|held| held.push(file));
    text("held")
}

#[cfg(target_os = "wasi")]
fn symlink(target: &Path, name: &Path) -> io::Result<()> {
    use dewar_guest::wasip2::filesystem::{preopens, types::ErrorCode};
    // std has no stable function for this on WASI.
    let (descriptor, root) = preopens::get_directories()
        .into_iter()
        .find(|(_, root)| name.starts_with(root))
        .ok_or_else(|| io::Error::from(io::ErrorKind::PermissionDenied))?;
    let name = name.strip_prefix(&root).map_err(io::Error::other)?;
    descriptor.symlink_at(&target.to_string_lossy(), &name.to_string_lossy()).map_err(|code| match code {
        ErrorCode::InsufficientSpace => io::ErrorKind::StorageFull.into(),
        ErrorCode::NotPermitted | ErrorCode::Access => io::ErrorKind::PermissionDenied.into(),
        ErrorCode::ReadOnly => io::ErrorKind::ReadOnlyFilesystem.into(),
        ErrorCode::Exist => io::ErrorKind::AlreadyExists.into(),
        ErrorCode::NoEntry => io::ErrorKind::NotFound.into(),
        other => io::Error::other(other.message()),
    })
}

#[cfg(not(target_os = "wasi"))]
fn symlink(target: &Path, name: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, name)
}
