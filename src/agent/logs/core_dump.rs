//! The core dump of an instance that trapped, among its log files: what the agent writes for the developer, and no guest sees.

use std::io::{self, Write as _};
use std::path::Path;

use tempfile::NamedTempFile;
use tracing::warn;

/// Its name.
const NAME: &str = "core.wasm";

/// Keeps it in place of the one before; it is there whole or not at all, and for this user alone. Says to the app how that went: a
/// full disk must not harm the instance.
pub(super) fn keep(dump: &[u8], logs: &Path) -> &'static str {
    match write(dump, logs) {
        Ok(()) => "[core dump kept as logs/core.wasm]",
        Err(error) => {
            warn!(path = %logs.join(NAME).display(), %error, "core dump not kept");
            "[no core dump: it cannot be written]"
        }
    }
}

fn write(dump: &[u8], logs: &Path) -> io::Result<()> {
    let mut file = NamedTempFile::new_in(logs)?;
    file.write_all(dump)?;
    file.persist(logs.join(NAME))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_latest_is_kept_for_nobody_else() {
        let logs = tempfile::tempdir().unwrap();
        for dump in [b"first".as_slice(), b"second"] {
            assert_eq!(keep(dump, logs.path()), "[core dump kept as logs/core.wasm]");
            assert_eq!(fs::read(logs.path().join(NAME)).unwrap(), dump);
        }
        assert_eq!(fs::metadata(logs.path().join(NAME)).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(logs.path()).unwrap().count(), 1);
    }

    #[test]
    fn one_that_cannot_be_written_is_told_and_leaves_nothing() {
        let logs = tempfile::tempdir().unwrap();
        fs::create_dir(logs.path().join(NAME)).unwrap();
        assert_eq!(keep(b"dump", logs.path()), "[no core dump: it cannot be written]");
        assert_eq!(fs::read_dir(logs.path()).unwrap().count(), 1, "the directory in its place");
        assert_eq!(keep(b"dump", &logs.path().join("gone")), "[no core dump: it cannot be written]");
    }
}
