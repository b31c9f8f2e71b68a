//! A guest's work as the future of whoever waits for it, in whichever lane it runs.
//!
//! In the fast lane polling it runs the guest. In the slow lane it is lent to the lane's threads, and comes back when it is done
//! or waits for something. Dropping it ends the guest in both: at once, or after the slice that it is in.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::cpu::CpuAccount;
use crate::epoch::Slice;
use crate::lanes::Job;

#[cfg(test)]
mod tests;

type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A guest's work. Its CPU time is counted, and it runs in the lane that its instance may use.
pub(crate) struct Scheduled<T: Send + 'static> {
    account: Arc<CpuAccount>,
    place: Place<T>,
}

enum Place<T: Send + 'static> {
    Fast(Work<T>),
    Slow(Loan<T>),
    Done,
}

/// What comes back from the slow lane.
enum Back<T> {
    Waiting(Work<T>),
    Done(T),
    Panicked(Box<dyn Any + Send>),
}

impl CpuAccount {
    /// Runs a guest's work on this account.
    pub(crate) fn schedule<T: Send + 'static>(self: &Arc<Self>, work: impl Future<Output = T> + Send + 'static) -> Scheduled<T> {
        Scheduled { account: self.clone(), place: Place::Fast(Box::pin(work)) }
    }
}

impl<T: Send + 'static> Future for Scheduled<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let this = &mut *self;
        loop {
            match &mut this.place {
                Place::Fast(work) if this.account.may_run_fast() => {
                    let slice = Slice::begin();
                    let polled = work.as_mut().poll(cx);
                    let spent = slice.end();
                    this.account.charge_fast(spent);
                    if polled.is_ready() {
                        this.place = Place::Done;
                        return polled;
                    }
                    if !spent.over {
                        return Poll::Pending;
                    }
                    this.lend();
                }
                Place::Fast(_) => this.lend(),
                Place::Slow(loan) => match Pin::new(&mut loan.back).poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(Back::Waiting(work))) => this.place = Place::Fast(work),
                    Poll::Ready(Ok(Back::Done(output))) => {
                        this.place = Place::Done;
                        return Poll::Ready(output);
                    }
                    Poll::Ready(Ok(Back::Panicked(panic))) => resume_unwind(panic),
                    // The agent is ending, and whoever waits here with it.
                    Poll::Ready(Err(_)) if this.account.lane().is_closed() => return Poll::Pending,
                    Poll::Ready(Err(_)) => resume_unwind(Box::new("a guest was lost")),
                },
                Place::Done => return Poll::Pending,
            }
        }
    }
}

impl<T: Send + 'static> Scheduled<T> {
    fn lend(&mut self) {
        if let Place::Fast(work) = std::mem::replace(&mut self.place, Place::Done) {
            self.place = Place::Slow(Loan::new(self.account.clone(), work));
        }
    }
}

/// Work that is in the slow lane.
struct Loan<T: Send + 'static> {
    task: Arc<Task<T>>,
    back: oneshot::Receiver<Back<T>>,
}

impl<T: Send + 'static> Loan<T> {
    fn new(account: Arc<CpuAccount>, work: Work<T>) -> Self {
        let (sender, back) = oneshot::channel();
        let lent = Lent { work, back: sender, _token: account.lend() };
        let task = Arc::new(Task { account, slot: Mutex::new(Slot::Queued(lent)) });
        task.account.lane().push(task.clone());
        Self { task, back }
    }
}

impl<T: Send + 'static> Drop for Loan<T> {
    fn drop(&mut self) {
        let slot = std::mem::replace(&mut *self.task.slot(), Slot::Gone);
        // Not under the lock: this may end a guest.
        drop(slot);
    }
}

struct Task<T> {
    account: Arc<CpuAccount>,
    slot: Mutex<Slot<T>>,
}

struct Lent<T> {
    work: Work<T>,
    back: oneshot::Sender<Back<T>>,
    _token: TaskTrackerToken,
}

impl<T> Lent<T> {
    /// The loan ends. Whoever lent may be gone, and then the work ends with it.
    fn give_back(self) {
        let Self { work, back, _token } = self;
        let _ = back.send(Back::Waiting(work));
    }

    /// The work has ended.
    fn end(self, how: Back<T>) {
        let Self { work, back, _token } = self;
        drop(work);
        // As above.
        let _ = back.send(how);
    }
}

enum Slot<T> {
    /// Waits for something outside.
    Waiting(Lent<T>),
    /// In the lane's queue.
    Queued(Lent<T>),
    Running {
        woken: bool,
    },
    /// Given back, or given up by whoever lent it.
    Gone,
}

impl<T> Task<T> {
    fn slot(&self) -> MutexGuard<'_, Slot<T>> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the work out to run it.
    fn take(&self) -> Option<Lent<T>> {
        let mut slot = self.slot();
        match std::mem::replace(&mut *slot, Slot::Running { woken: false }) {
            Slot::Queued(lent) | Slot::Waiting(lent) => Some(lent),
            other @ (Slot::Running { .. } | Slot::Gone) => {
                *slot = other;
                None
            }
        }
    }

    /// Puts work back that has not ended. Whether it is to run again at once.
    fn put(&self, lent: Lent<T>) -> bool {
        let mut slot = self.slot();
        let Slot::Running { woken } = *slot else {
            drop(slot);
            drop(lent);
            return false;
        };
        *slot = if woken { Slot::Queued(lent) } else { Slot::Waiting(lent) };
        woken
    }
}

impl<T: Send + 'static> Wake for Task<T> {
    fn wake(self: Arc<Self>) {
        let mut slot = self.slot();
        match std::mem::replace(&mut *slot, Slot::Gone) {
            Slot::Waiting(lent) => {
                *slot = Slot::Queued(lent);
                drop(slot);
                self.account.lane().push(self.clone());
            }
            Slot::Running { .. } => *slot = Slot::Running { woken: true },
            other @ (Slot::Queued(_) | Slot::Gone) => *slot = other,
        }
    }
}

impl<T: Send + 'static> Job for Task<T> {
    fn account(&self) -> &Arc<CpuAccount> {
        &self.account
    }

    fn run(self: Arc<Self>) -> (Duration, Option<Arc<dyn Job>>) {
        let Some(mut lent) = self.take() else { return (Duration::ZERO, None) };
        let waker = Waker::from(self.clone());
        let slice = Slice::begin_exactly();
        let polled = catch_unwind(AssertUnwindSafe(|| lent.work.as_mut().poll(&mut Context::from_waker(&waker))));
        let spent = slice.end();
        self.account.charge(spent.cpu);
        match polled {
            Ok(Poll::Ready(output)) => lent.end(Back::Done(output)),
            Err(panic) => lent.end(Back::Panicked(panic)),
            // It waits, and its instance has not lost the fast lane: that is where it is served soonest.
            Ok(Poll::Pending) if !spent.over && self.account.may_run_fast() => lent.give_back(),
            Ok(Poll::Pending) => {
                if self.put(lent) {
                    return (spent.cpu, Some(self));
                }
            }
        }
        (spent.cpu, None)
    }
}
