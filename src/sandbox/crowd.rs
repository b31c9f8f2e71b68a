//! Whose idle stores give way when the engine has no place for another.
//!
//! An engine has places for so many memories and stacks, and a store keeps its own while it lies idle. Where thousands of instances
//! have each answered a request there may be none left for the next; then the stores that have lain idle longest go, be they their
//! instances' last. An instance loses with it what it kept in memory, which is less than a request that cannot be answered.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use tracing::info;
use wasmtime::Engine;

/// Stores that go at a time: to look for them takes longer than to drop one.
const AT_A_TIME: usize = 64;

/// Somebody who has idle stores.
pub(crate) trait Idle: Send + Sync {
    /// Whether the stores have their places in this engine.
    fn is_in(&self, engine: &Engine) -> bool;
    /// Since when the store that has lain idle longest has done so.
    fn idle_since(&self) -> Option<Instant>;
    /// Drops that store, if it is still there.
    fn give_way(&self) -> bool;
}

/// All who may have idle stores.
#[derive(Default)]
pub(crate) struct Crowd(Mutex<Vec<Weak<dyn Idle>>>);

impl Crowd {
    pub(crate) fn join(&self, member: Weak<dyn Idle>) {
        let mut members = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if members.len() == members.capacity() {
            // Before it grows, so that it never has more than twice as many as there are.
            members.retain(|member| member.strong_count() > 0);
        }
        members.push(member);
    }

    /// Drops some idle stores in this engine; whether there were any.
    pub(crate) fn make_room(&self, engine: &Engine) -> bool {
        let mut idle: Vec<(Instant, Arc<dyn Idle>)> = Vec::new();
        for member in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade) {
            if let Some(since) = member.idle_since().filter(|_| member.is_in(engine)) {
                idle.push((since, member));
            }
        }
        idle.sort_by_key(|(since, _)| *since);
        // One that has been taken meanwhile is none of those that went.
        let gone = idle.iter().filter(|(_, member)| member.give_way()).take(AT_A_TIME).count();
        if gone > 0 {
            info!(stores = gone, "stores of idle instances made room for others");
        }
        gone > 0
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    struct Member {
        here: bool,
        since: Option<Instant>,
        gone: AtomicUsize,
    }

    impl Idle for Member {
        fn is_in(&self, _engine: &Engine) -> bool {
            self.here
        }

        fn idle_since(&self) -> Option<Instant> {
            self.since
        }

        fn give_way(&self) -> bool {
            self.gone.fetch_add(1, Ordering::Relaxed);
            self.since.is_some()
        }
    }

    fn joined(crowd: &Crowd, here: bool, since: Option<Instant>) -> Arc<Member> {
        let member = Arc::new(Member { here, since, gone: AtomicUsize::new(0) });
        let idle: Arc<dyn Idle> = member.clone();
        crowd.join(Arc::downgrade(&idle));
        member
    }

    #[test]
    fn those_idle_longest_go_and_no_others() {
        let (crowd, engine, now) = (Crowd::default(), Engine::default(), Instant::now());
        let gone = |member: &Arc<Member>| member.gone.load(Ordering::Relaxed);
        assert!(!crowd.make_room(&engine), "nobody is there");
        let (busy, elsewhere) = (joined(&crowd, true, None), joined(&crowd, false, Some(now)));
        assert!(!crowd.make_room(&engine), "nobody has anything");
        let members: Vec<_> =
            (0..2 * AT_A_TIME as u64).rev().map(|millis| joined(&crowd, true, Some(now + Duration::from_millis(millis)))).collect();
        assert!(crowd.make_room(&engine));
        let (late, early) = members.split_at(AT_A_TIME);
        assert!(early.iter().all(|member| gone(member) == 1) && late.iter().all(|member| gone(member) == 0));
        assert_eq!((gone(&busy), gone(&elsewhere)), (0, 0));
    }

    #[test]
    fn those_that_are_gone_are_forgotten() {
        let crowd = Crowd::default();
        for _ in 0..1000 {
            joined(&crowd, true, None);
        }
        assert!(crowd.0.lock().unwrap().len() <= 4);
    }
}
