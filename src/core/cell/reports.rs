//! Answers to questions.

use dewar_protocol::{ComponentAnnounce, FindDroplet, Mib, PROTOCOL_VERSION, Status};

use super::Cell;
use crate::filter::{EmptyList, Filter};
use crate::instance::Instance;
use crate::resources::Reservation;
use crate::{Answer, Capacity, Effect, Now, ReplyTo, Varz};

impl Cell {
    /// One answer per match, none where nothing matches.
    pub(super) fn find_instances(&self, now: Now, question: FindDroplet, reply_to: Option<&ReplyTo>, out: &mut Vec<Effect>) {
        let filter = match Filter::new(question.clone().into_filter(), EmptyList::NoCondition) {
            Ok(filter) => filter,
            Err(error) => {
                out.push(Effect::Refused { request: "dea.find.droplet", why: error.to_string() });
                return;
            }
        };
        let Some(reply_to) = reply_to else { return };
        for instance in self.registry.select(&filter).into_iter().filter_map(|key| self.registry.get(key)) {
            let mut found = instance.found(&self.config);
            self.add_file_urls(now, &question, &mut found);
            if question.include_stats {
                found.stats = instance.stats(now, &self.config);
                found.crash = instance.crash_report();
            }
            out.push(Effect::Reply(reply_to.clone(), Answer::Found(Box::new(found))));
        }
    }

    pub(super) fn status(&self) -> Status {
        let totals = self.registry.totals();
        Status {
            id: self.config.id.clone(),
            ip: self.config.ip.clone(),
            version: PROTOCOL_VERSION.to_owned(),
            max_memory: self.config.capacity.memory,
            reserved_memory: (totals.reserved + self.tasks.reserved()).memory,
            used_memory: Mib(i64::try_from(totals.used_memory >> 20).unwrap_or(i64::MAX)),
            num_clients: None,
        }
    }

    pub(super) fn discovered(&self, now: Now) -> ComponentAnnounce {
        let seconds = now.mono.0.as_secs();
        let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
        ComponentAnnounce { uptime: Some(format!("{days}d:{hours}h:{minutes}m:{}s", seconds % 60)), ..self.component() }
    }

    pub(super) fn varz(&self) -> Varz {
        let remaining = self.remaining();
        let staging = self.config.staging;
        let (available_memory_ratio, available_disk_ratio) = remaining.ratios(self.config.capacity);
        Varz {
            stacks: self.config.stacks.clone(),
            reservable_stagers: remaining.reservable(Reservation { memory: staging.memory, disk: staging.disk }),
            available_memory_ratio,
            available_disk_ratio,
            capacity: self.config.capacity,
            remaining: Capacity { memory: remaining.memory(), disk: remaining.disk() },
            instances: self.registry.iter().map(Instance::varz).collect(),
            staging_tasks: self.tasks.len(),
        }
    }
}
