//! Where the client keeps its files.

use std::path::PathBuf;

use dewar_client::ClientError;

use crate::args::HomeArgs;

/// The folder that was named, else `~/.dewar`.
pub(crate) fn home_dir(args: &HomeArgs) -> Result<PathBuf, ClientError> {
    match (&args.home, std::env::home_dir()) {
        (Some(given), _) if !given.as_os_str().is_empty() => {
            std::path::absolute(given).map_err(|source| ClientError::Io { action: format!("use {}", given.display()), source })
        }
        (_, Some(home)) if !home.as_os_str().is_empty() => Ok(home.join(".dewar")),
        (_, _) => Err(ClientError::Usage("there is no home directory; name a folder with --home or DEWAR_HOME".to_owned())),
    }
}
