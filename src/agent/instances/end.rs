//! Every instance has an end that can be told, also where nobody saw it.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use dewar_core::Exit;
use futures::FutureExt as _;
use tokio::time::timeout;
use tracing::error;

/// What a run came to, be it a panic.
pub(super) async fn seen_to_its_end(run: impl Future<Output = Exit>) -> Exit {
    AssertUnwindSafe(run).catch_unwind().await.unwrap_or_else(|_| {
        error!("instance's task panicked");
        unknown()
    })
}

/// The exit of one that was killed; after `limit` it is given up.
pub(super) async fn in_time(limit: Duration, exit: impl Future<Output = Exit>) -> Exit {
    timeout(limit, exit).await.unwrap_or_else(|_| {
        error!(?limit, "killed instance does not end, it is given up");
        unknown()
    })
}

/// As the original called an end that it could not wait for.
fn unknown() -> Exit {
    Exit { status: -1, description: "unknown".to_owned() }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    fn trap() -> Exit {
        Exit { status: 134, description: "trap".to_owned() }
    }

    #[tokio::test]
    async fn a_panic_is_an_end_of_unknown_cause() {
        assert_eq!(seen_to_its_end(async { panic!("of the agent's own") }).await, unknown());
        assert_eq!(seen_to_its_end(ready(trap())).await, trap());
        assert_eq!(unknown(), Exit { status: -1, description: "unknown".to_owned() });
    }

    #[tokio::test]
    async fn one_that_does_not_end_is_given_up() {
        let told = in_time(Duration::from_millis(1), pending()).await;
        assert_eq!((told.status, told.description.as_str()), (-1, "unknown"));
        assert_eq!(in_time(Duration::from_secs(60), ready(trap())).await, trap());
    }
}
