//! How many descriptors this process may have.
//!
//! An instance takes one to listen on, one for each connection, and two for its directories if it asks for them. The usual soft
//! limit of 1024, made for programs that call `select`, would end at some hundred instances.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{info, warn};

/// For everything but instances: bus, status server, transfers, staging, log files.
const OTHERS: u64 = 1024;

/// Raises the soft limit to the hard one, which only an operator can raise, and says so when that is too little for this many
/// instances. What is too much then fails to start, with "Too many open files" in the log.
pub(crate) fn raise_limit(instances: usize) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
            Ok(()) => info!(before = current, now = maximum, "limit on open files raised"),
            Err(error) => warn!(%error, limit = current, "limit on open files not raised"),
        }
    }
    let instances = u64::try_from(instances).unwrap_or(u64::MAX);
    if let Some(enough) = shortage(getrlimit(Resource::Nofile).current, instances) {
        warn!(enough, instances, "the limit on open files (RLIMIT_NOFILE) is too low for an instance on each port");
    }
}

/// The limit that would be enough, if this one is not; `None`, no limit, always is.
fn shortage(limit: Option<u64>, instances: u64) -> Option<u64> {
    let enough = instances.saturating_add(OTHERS);
    limit.is_some_and(|limit| limit < enough).then_some(enough)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        raise_limit(1);
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        assert_eq!(current, maximum);
    }

    #[test]
    fn too_low_a_limit_is_noticed() {
        assert_eq!(shortage(Some(1024), 4535), Some(5559));
        assert_eq!(shortage(Some(5559), 4535), None);
        assert_eq!(shortage(None, u64::MAX), None);
    }
}
