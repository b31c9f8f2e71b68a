use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{current, sleep};

use futures::FutureExt;
use tokio::runtime::Builder;
use tokio::sync::Notify;

use super::*;
use crate::cpu::CpuQuota;
use crate::epoch::at_tick;
use crate::lanes::GuestThreads;

fn account(threads: &GuestThreads) -> Arc<CpuAccount> {
    CpuAccount::new(threads.slow(), CpuQuota::default())
}

fn in_slow_lane() -> bool {
    current().name() == Some("dewar-slow")
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(120), work).await.expect("in time") })
}

/// Computes as a guest does: until a tick puts it aside.
async fn compute() {
    let mut put_aside = false;
    poll_fn(|cx| {
        if put_aside {
            return Poll::Ready(());
        }
        while !matches!(at_tick(), wasmtime::UpdateDeadline::Yield(_)) {}
        put_aside = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[test]
fn little_work_stays_where_it_is() {
    let threads = GuestThreads::start(Arc::default()).expect("threads");
    let here = current().id();
    assert!(run(account(&threads).schedule(async move { current().id() == here })));
}

#[test]
fn who_computes_for_a_slice_goes_on_in_the_slow_lane_and_so_does_what_comes_after() {
    let threads = GuestThreads::start(Arc::default()).expect("threads");
    let account = account(&threads);
    let lanes = run(account.schedule(async {
        let before = in_slow_lane();
        compute().await;
        (before, in_slow_lane())
    }));
    assert_eq!(lanes, (false, true));
    assert!(run(account.schedule(async { in_slow_lane() })), "its instance has lost the fast lane");
    assert!(account.total() > Duration::ZERO);
    run(account.is_gone());
}

#[test]
fn a_panic_in_the_slow_lane_is_its_waiters() {
    let threads = GuestThreads::start(Arc::default()).expect("threads");
    let account = account(&threads);
    let broken = account.schedule(async {
        compute().await;
        panic!("on purpose");
    });
    let panic = run(AssertUnwindSafe(broken).catch_unwind()).expect_err("it panicked");
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"on purpose"));
    assert!(run(account.schedule(async { in_slow_lane() })), "the lane lives on");
}

/// Counts how many there are.
struct Held(Arc<AtomicUsize>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[test]
fn dropping_it_ends_the_work_in_whatever_state_it_is() {
    let threads = GuestThreads::start(Arc::default()).expect("threads");
    let account = account(&threads);
    let alive = Arc::new(AtomicUsize::new(0));
    for pause in [0, 1, 5, 20] {
        for waits in [false, true] {
            alive.fetch_add(1, Ordering::SeqCst);
            let held = Held(alive.clone());
            let mut work = account.schedule(async move {
                let _held = held;
                compute().await;
                if !waits {
                    loop {
                        compute().await;
                    }
                }
                std::future::pending::<()>().await;
            });
            assert!(run(async { poll_fn(|cx| Poll::Ready(work.poll_unpin(cx).is_pending())).await }));
            sleep(Duration::from_millis(pause));
            drop(work);
            run(account.is_gone());
            assert_eq!(alive.load(Ordering::SeqCst), 0, "waits: {waits}, after {pause} ms");
        }
    }
}

#[test]
fn a_wake_while_it_runs_is_not_lost() {
    let threads = GuestThreads::start(Arc::default()).expect("threads");
    let account = account(&threads);
    let bell = Arc::new(Notify::new());
    let (ringing, done) = (bell.clone(), Arc::new(AtomicUsize::new(0)));
    let (counting, ringer_done) = (done.clone(), done.clone());
    let ringer = std::thread::spawn(move || {
        while ringer_done.load(Ordering::SeqCst) <= 2000 {
            ringing.notify_one();
            std::hint::spin_loop();
        }
    });
    run(account.schedule(async move {
        compute().await;
        while counting.fetch_add(1, Ordering::SeqCst) < 2000 {
            bell.notified().await;
        }
    }));
    ringer.join().expect("it ends");
    assert!(done.load(Ordering::SeqCst) > 2000);
}
