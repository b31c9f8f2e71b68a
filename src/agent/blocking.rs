//! Work that blocks, on threads that may.

/// Runs blocking work on a thread for it and hands a panic on. When the caller is dropped the work goes on to its end.
pub(crate) async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(result) => result,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // The runtime is going down before the work began, and this task with it.
        Err(Err(_)) => std::future::pending().await,
    }
}
