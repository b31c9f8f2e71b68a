//! Where an instance goes: the Cloud Controller's rules, pure.

use std::cmp::Reverse;

use dewar_protocol::{Advertise, AppId, CellId, Limits, Mib, StagingAdvertise};
use rand::Rng;
use rand::seq::IndexedRandom;

/// What agents offer for one app, lowered by each choice already made.
#[derive(Debug, Clone)]
pub(crate) struct Placement {
    candidates: Vec<Candidate>,
}

#[derive(Debug, Clone, PartialEq)]
struct Candidate {
    id: CellId,
    zone: String,
    memory: Mib,
    disk: Mib,
    instances: usize,
}

impl Placement {
    /// From the newest advertisement of each agent.
    #[must_use]
    pub(crate) fn new(advertisements: &[Advertise], app: &AppId) -> Self {
        let candidates = advertisements.iter().map(|a| Candidate {
            id: a.id.clone(),
            zone: a.placement_properties.zone.clone(),
            memory: a.available_memory,
            disk: a.available_disk,
            instances: a.app_id_to_count.get(app).copied().unwrap_or(0),
        });
        Self { candidates: candidates.collect() }
    }

    /// Picks an agent for one more instance, or none when nobody has room.
    ///
    /// Of those with room: the zone with the fewest instances of the app, there the agents with the fewest, of these the
    /// half with more memory, and of that half any.
    pub(crate) fn pick(&mut self, need: Limits, rng: &mut impl Rng) -> Option<CellId> {
        let roomy: Vec<&Candidate> = self.candidates.iter().filter(|c| c.memory >= need.mem && c.disk >= need.disk).collect();
        let in_zone = |zone: &str| self.candidates.iter().filter(|c| c.zone == zone).map(|c| c.instances).sum::<usize>();
        let emptiest_zone = roomy.iter().map(|c| in_zone(&c.zone)).min()?;
        let fewest = roomy.iter().filter(|c| in_zone(&c.zone) == emptiest_zone).map(|c| c.instances).min()?;
        let mut best: Vec<&Candidate> = roomy.into_iter().filter(|c| in_zone(&c.zone) == emptiest_zone && c.instances == fewest).collect();
        best.sort_by_key(|c| Reverse(c.memory));
        best.truncate(best.len().div_ceil(2));
        let chosen = best.choose(rng)?.id.clone();
        self.take(&chosen, need);
        Some(chosen)
    }

    /// The most memory any one agent has left, for the message when nobody has room.
    #[must_use]
    pub(crate) fn roomiest(&self) -> Option<Mib> {
        self.candidates.iter().map(|c| c.memory).max()
    }

    fn take(&mut self, id: &CellId, need: Limits) {
        for candidate in self.candidates.iter_mut().filter(|c| &c.id == id) {
            candidate.memory.0 = candidate.memory.0.saturating_sub(need.mem.0);
            candidate.disk.0 = candidate.disk.0.saturating_sub(need.disk.0);
            candidate.instances += 1;
        }
    }
}

/// The stager with the most free memory.
#[must_use]
pub(crate) fn pick_stager(advertisements: &[StagingAdvertise]) -> Option<&StagingAdvertise> {
    advertisements.iter().max_by_key(|a| a.available_memory)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use dewar_protocol::PlacementProperties;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    const NEED: Limits = Limits { mem: Mib(64), disk: Mib(64), fds: 16 };

    fn agent(id: &str, zone: &str, memory: i64, instances: usize) -> Advertise {
        Advertise {
            id: CellId::from(id),
            stacks: vec![],
            available_memory: Mib(memory),
            available_disk: Mib(1024),
            app_id_to_count: [(AppId::from("app"), instances), (AppId::from("other"), 50)].into(),
            placement_properties: PlacementProperties { zone: zone.to_owned() },
            url: None,
        }
    }

    /// Every agent that some seed leads to.
    fn picks(agents: &[Advertise]) -> BTreeSet<String> {
        let placement = Placement::new(agents, &AppId::from("app"));
        (0..50).filter_map(|seed| placement.clone().pick(NEED, &mut StdRng::seed_from_u64(seed)).map(|id| id.0)).collect()
    }

    fn set(ids: &[&str]) -> BTreeSet<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    #[test]
    fn the_emptiest_zone_then_the_fewest_instances_then_the_upper_half_by_memory() {
        assert_eq!(picks(&[agent("a", "z1", 9000, 2), agent("b", "z2", 100, 1)]), set(&["b"]));
        assert_eq!(picks(&[agent("a", "z1", 9000, 2), agent("b", "z1", 100, 1)]), set(&["b"]));
        let four = [agent("a", "z1", 400, 0), agent("b", "z1", 300, 0), agent("c", "z1", 200, 0), agent("d", "z1", 100, 0)];
        assert_eq!(picks(&four), set(&["a", "b"]));
    }

    #[test]
    fn an_agent_without_room_is_no_candidate() {
        assert_eq!(picks(&[agent("a", "z1", 63, 0), agent("b", "z1", 64, 9)]), set(&["b"]));
        let mut full_disk = agent("a", "z1", 640, 0);
        full_disk.available_disk = Mib(63);
        assert_eq!(picks(&[full_disk]), set(&[]));
        assert_eq!(picks(&[]), set(&[]));
    }

    #[test]
    fn each_choice_lowers_what_is_left() {
        let mut placement = Placement::new(&[agent("a", "z1", 130, 0), agent("b", "z1", 70, 0)], &AppId::from("app"));
        let mut rng = StdRng::seed_from_u64(1);
        let chosen: Vec<_> = std::iter::from_fn(|| placement.pick(NEED, &mut rng)).map(|id| id.0).collect();
        assert_eq!(chosen, ["a", "b", "a"]);
        assert_eq!(placement.roomiest(), Some(Mib(6)));
    }

    #[test]
    fn the_stager_with_the_most_memory() {
        let stager = |id: &str, memory| StagingAdvertise {
            id: CellId::from(id),
            stacks: vec![],
            available_memory: Mib(memory),
            available_disk: Mib(0),
        };
        assert_eq!(pick_stager(&[stager("a", 1), stager("b", 3), stager("c", 2)]).map(|s| s.id.as_str()), Some("b"));
        assert_eq!(pick_stager(&[]), None);
    }
}
