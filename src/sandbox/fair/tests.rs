use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn order(queue: &mut FairQueue<u32>, now: Instant) -> Vec<u32> {
    std::iter::from_fn(|| queue.pop(now).map(|(_, job)| job)).collect()
}

#[test]
fn jobs_of_a_flow_take_turns() {
    let mut queue = FairQueue::new();
    (0..5).for_each(|job| queue.push(1, 1, job));
    assert_eq!(order(&mut queue, Instant::now()), [0, 1, 2, 3, 4]);
}

#[test]
fn the_flow_that_had_less_comes_first() {
    let mut queue = FairQueue::new();
    queue.push(1, 1, 10);
    assert_eq!(queue.pop(Instant::now()), Some((1, 10)));
    queue.charge(1, 2 * MS);
    queue.push(1, 1, 11);
    queue.push(2, 1, 20);
    assert_eq!(order(&mut queue, Instant::now()), [20, 11]);
}

#[test]
fn who_was_idle_has_saved_nothing_up() {
    let now = Instant::now();
    let mut queue = FairQueue::new();
    queue.push(2, 1, 0);
    queue.pop(now);
    for _ in 0..1000 {
        queue.push(1, 1, 1);
        queue.pop(now);
        queue.charge(1, MS);
    }
    queue.push(1, 1, 1);
    let mut late = 0;
    queue.push(2, 1, 2);
    for _ in 0..100 {
        let (flow, job) = queue.pop(now).expect("both have jobs");
        late += u32::from(flow == 2);
        queue.charge(flow, MS);
        queue.push(flow, 1, job);
    }
    assert!((49..=52).contains(&late), "{late} of 100 slices");
}

#[test]
fn a_held_flow_holds_up_nobody() {
    let now = Instant::now();
    let mut queue = FairQueue::new();
    queue.push(1, 1, 10);
    queue.push(1, 1, 11);
    queue.push(2, 1, 20);
    let (flow, job) = queue.pop(now).expect("a job");
    queue.hold(flow, job, now + 5 * MS);
    assert_eq!(order(&mut queue, now), [20]);
    assert_eq!(queue.next_release(), Some(now + 5 * MS));
    assert_eq!(order(&mut queue, now + 4 * MS), [0; 0]);
    assert_eq!(order(&mut queue, now + 5 * MS), [10, 11]);
    assert_eq!(queue.next_release(), None);
}

#[test]
fn a_forgotten_flow_leaves_nothing() {
    let now = Instant::now();
    let mut queue = FairQueue::new();
    queue.push(1, 1, 10);
    queue.push(2, 1, 20);
    let held = queue.pop(now).expect("a job");
    queue.hold(held.0, held.1, now + MS);
    queue.forget(1);
    queue.forget(2);
    assert!(queue.pop(now + MS).is_none() && queue.flows.is_empty() && queue.ready.is_empty() && queue.held.is_empty());
}

proptest! {
    /// Two flows that always have jobs differ, by share, by no more than the longest slice of each.
    #[test]
    fn busy_flows_get_what_their_shares_say(shares in vec(1_u32..=256, 2..6), slices in vec(1_u64..=5_000_000, 200..400)) {
        let now = Instant::now();
        let mut queue = FairQueue::new();
        let mut used = vec![0_u64; shares.len()];
        for (flow, share) in shares.iter().enumerate() {
            (0..2).for_each(|job| queue.push(flow as u64, *share, job));
        }
        for slice in slices {
            let (flow, job) = queue.pop(now).expect("all have jobs");
            let index = usize::try_from(flow).expect("small");
            used[index] += slice;
            queue.charge(flow, Duration::from_nanos(slice));
            queue.push(flow, shares[index], job);
        }
        let by_share: Vec<f64> = used.iter().zip(&shares).map(|(used, shares)| *used as f64 / f64::from(*shares)).collect();
        for (a, left) in by_share.iter().enumerate() {
            for (b, right) in by_share.iter().enumerate() {
                let bound = 5_000_001.0 / f64::from(shares[a]) + 5_000_001.0 / f64::from(shares[b]);
                prop_assert!((left - right).abs() <= bound, "{used:?} of {shares:?}");
            }
        }
    }

    /// Whatever happens to flows, every job comes out once, in the order of its flow, and not before its flow may run.
    #[test]
    fn no_job_is_lost(steps in vec((0_u8..4, 0_u64..4, 0_u64..10), 1..300)) {
        let start = Instant::now();
        let mut now = start;
        let mut queue = FairQueue::new();
        let mut model: HashMap<FlowId, VecDeque<usize>> = HashMap::new();
        let mut held: HashMap<FlowId, Instant> = HashMap::new();
        for (number, (step, flow, amount)) in steps.into_iter().enumerate() {
            match step {
                0 => {
                    queue.push(flow, 1 + u32::try_from(flow).expect("small"), number);
                    model.entry(flow).or_default().push_back(number);
                }
                1 => queue.charge(flow, MS * u32::try_from(amount).expect("small")),
                2 => now += MS,
                _ => match queue.pop(now) {
                    Some((flow, job)) => {
                        prop_assert!(held.get(&flow).is_none_or(|until| *until <= now));
                        prop_assert_eq!(model.get(&flow).and_then(VecDeque::front), Some(&job));
                        if amount < 3 {
                            let until = now + MS * 3;
                            queue.hold(flow, job, until);
                            held.insert(flow, until);
                        } else {
                            model.get_mut(&flow).expect("known").pop_front();
                        }
                    }
                    None => {
                        let runnable = |(flow, jobs): (&FlowId, &VecDeque<usize>)| {
                            !jobs.is_empty() && held.get(flow).is_none_or(|until| *until <= now)
                        };
                        prop_assert!(!model.iter().any(runnable), "somebody could run");
                    }
                },
            }
        }
        let left: usize = std::iter::from_fn(|| queue.pop(now + MS * 3)).count();
        prop_assert_eq!(left, model.values().map(VecDeque::len).sum::<usize>());
    }

    /// Who uses all that the cap lets through gets its percentage, and what had been saved up at the start.
    #[test]
    fn a_cap_holds(percent in 1_u32..=400, slices in vec(1_u64..=5_000, 100..300)) {
        let start = Instant::now();
        let (mut now, mut used) = (start, Duration::ZERO);
        let mut cap = Cap::new(percent, now);
        for slice in slices.into_iter().map(Duration::from_micros) {
            now = cap.held_until(now).unwrap_or(now);
            prop_assert_eq!(cap.held_until(now), None, "the moment it named is the right one");
            now += slice;
            used += slice;
            cap.charge(slice, now);
        }
        let allowed = (now - start + CAP_SPAN).as_secs_f64() * f64::from(percent) / 100.0 + 0.005;
        prop_assert!(used.as_secs_f64() <= allowed, "{used:?} of {allowed}");
        let least = (now - start).as_secs_f64() * f64::from(percent) / 100.0 - 0.005;
        prop_assert!(percent > 100 || used.as_secs_f64() >= least, "{used:?}, at least {least}");
    }
}
