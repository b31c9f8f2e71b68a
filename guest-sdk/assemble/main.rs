//! `dewar-assemble FOLDER FILE.wat…` writes `FOLDER/FILE.wasm` for each file. It does not validate: some of them are invalid on purpose.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let Some(folder) = arguments.next() else {
        eprintln!("usage: dewar-assemble FOLDER FILE.wat…");
        return ExitCode::from(64);
    };
    for text in arguments {
        if let Err(problem) = assemble(&text, &folder) {
            eprintln!("{problem}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn assemble(text: &Path, folder: &Path) -> Result<(), String> {
    let wasm = wat::parse_file(text).map_err(|e| e.to_string())?;
    let path = folder.join(text.with_extension("wasm").file_name().ok_or("a path without a file name")?);
    if std::fs::read(&path).is_ok_and(|there| there == wasm) {
        return Ok(());
    }
    std::fs::write(&path, wasm).map_err(|e| format!("{}: {e}", path.display()))
}
