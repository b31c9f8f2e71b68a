//! Reports as tables for people.

use std::time::Duration;

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use dewar_protocol::{Advertise, Crash};

use crate::records::Phase;
use crate::report::{AppReport, AppSummary, InstanceReport};
use crate::screen::escape_controls;

/// What stands where nothing is known.
const UNKNOWN: &str = "–";

/// A list of apps.
#[must_use]
pub fn apps_table(apps: &[AppSummary]) -> String {
    let mut table = plain(&["name", "state", "instances", "memory", "disk", "routes"]);
    for app in apps {
        table.add_row([
            app.name.as_ref().map_or_else(|| format!("({})", app.id), ToString::to_string),
            state_of(app).to_owned(),
            instances_of(app),
            or_unknown(app.memory_mib),
            or_unknown(app.disk_mib),
            app.uris.join(", "),
        ]);
    }
    table.trim_fmt()
}

/// One app.
#[must_use]
pub fn app_table(app: &AppReport) -> String {
    let mut facts = plain(&[]);
    let name = app.summary.name.as_ref().map_or_else(|| app.summary.id.to_string(), ToString::to_string);
    facts.add_row(["name:".to_owned(), name]);
    facts.add_row(["id:".to_owned(), app.summary.id.to_string()]);
    facts.add_row(["state:".to_owned(), state_of(&app.summary).to_owned()]);
    facts.add_row(["instances:".to_owned(), instances_of(&app.summary)]);
    facts.add_row(["routes:".to_owned(), app.summary.uris.join(", ")]);
    facts.add_row(["buildpack:".to_owned(), or_unknown(app.summary.buildpack.as_deref())]);
    facts.add_row(["command:".to_owned(), or_unknown(app.start_command.as_deref())]);
    facts.add_row(["package:".to_owned(), or_unknown(app.package.as_deref())]);
    if app.instances.is_empty() {
        return facts.trim_fmt();
    }
    let mut instances = plain(&["index", "state", "uptime", "cpu", "memory", "disk", "address", "agent"]);
    for instance in &app.instances {
        instances.add_row(instance_row(instance));
    }
    let crashes: String = app.instances.iter().filter_map(|instance| Some(crash_text(instance.index, instance.crash.as_ref()?))).collect();
    format!("{}\n\n{}{crashes}", facts.trim_fmt(), instances.trim_fmt())
}

/// How an instance ended, and what it said last, below an empty line.
fn crash_text(index: u32, crash: &Crash) -> String {
    let mut description = crash.exit_description.lines();
    let cause = description.next().filter(|cause| !cause.is_empty()).unwrap_or("no reason given");
    let mut text = format!("\n\ninstance {index} crashed: {} (exit status {})", escape_controls(cause), crash.exit_status);
    for line in description {
        text += &format!("\n{}", escape_controls(line));
    }
    if !crash.last_lines.is_empty() {
        text += "\nlast lines of its log:";
    }
    for line in &crash.last_lines {
        text += &format!("\n  {}", escape_controls(line));
    }
    text
}

/// A list of agents.
#[must_use]
pub fn agents_table(agents: &[Advertise]) -> String {
    let mut table = plain(&["agent", "zone", "free memory", "free disk", "instances", "stacks"]);
    for agent in agents {
        table.add_row([
            agent.id.to_string(),
            agent.placement_properties.zone.clone(),
            agent.available_memory.to_string(),
            agent.available_disk.to_string(),
            agent.app_id_to_count.values().sum::<usize>().to_string(),
            agent.stacks.join(", "),
        ]);
    }
    table.trim_fmt()
}

fn plain(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    if !header.is_empty() {
        table.set_header(header.to_vec());
    }
    table
}

fn state_of(app: &AppSummary) -> &'static str {
    match app.phase {
        Some(Phase::Staged) => "staged",
        Some(Phase::Started) => "started",
        Some(Phase::Stopped) => "stopped",
        None => "pushed elsewhere",
    }
}

fn instances_of(app: &AppSummary) -> String {
    let wanted = app.wanted.map_or_else(|| "?".to_owned(), |wanted| wanted.to_string());
    let also = |count: usize, what: &str| if count == 0 { String::new() } else { format!(", {count} {what}") };
    format!("{}/{wanted}{}{}", app.running, also(app.starting, "starting"), also(app.crashed, "crashed"))
}

fn instance_row(instance: &InstanceReport) -> [String; 8] {
    let of_quota = |used: Option<u64>, quota: Option<u64>| match (used, quota) {
        (Some(used), Some(quota)) => format!("{} of {}", amount(used), amount(quota)),
        _ => UNKNOWN.to_owned(),
    };
    [
        instance.index.to_string(),
        instance.state.to_string().to_lowercase(),
        instance.uptime_seconds.map_or_else(|| UNKNOWN.to_owned(), |seconds| span(Duration::from_secs(seconds))),
        instance.cpu.map_or_else(|| UNKNOWN.to_owned(), |cpu| format!("{:.1}%", cpu * 100.0)),
        of_quota(instance.memory_bytes, instance.memory_quota_bytes),
        of_quota(instance.disk_bytes, instance.disk_quota_bytes),
        or_unknown(instance.address.as_deref()),
        instance.agent.to_string(),
    ]
}

fn or_unknown<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| UNKNOWN.to_owned(), |value| value.to_string())
}

/// Binary units with at most one decimal.
fn amount(bytes: u64) -> String {
    let (unit, name) = match bytes {
        0..1024 => return format!("{bytes}B"),
        1024..1_048_576 => (1 << 10, "K"),
        1_048_576..1_073_741_824 => (1 << 20, "M"),
        _ => (1_u64 << 30, "G"),
    };
    let tenths = (u128::from(bytes) * 10 + u128::from(unit) / 2) / u128::from(unit);
    if tenths.is_multiple_of(10) { format!("{}{name}", tenths / 10) } else { format!("{}.{}{name}", tenths / 10, tenths % 10) }
}

/// The two largest units: `3d 4h`, `5m 6s`.
fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    let units = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let parts: Vec<String> = units
        .iter()
        .scan(seconds, |left, (size, name)| {
            let count = *left / size;
            *left %= size;
            Some((count, name))
        })
        .skip_while(|(count, _)| *count == 0)
        .take(2)
        .map(|(count, name)| format!("{count}{name}"))
        .collect();
    if parts.is_empty() { "0s".to_owned() } else { parts.join(" ") }
}

#[cfg(test)]
mod tests {
    use dewar_protocol::{AppId, CellId, InstanceId, InstanceState, Mib, UnixSeconds};

    use super::*;

    #[test]
    fn amounts_and_spans() {
        let amounts = [0, 1023, 1024, 1536, 1 << 20, (64 << 20) + (1 << 19), 1 << 30, u64::MAX].map(amount);
        assert_eq!(amounts, ["0B", "1023B", "1K", "1.5K", "1M", "64.5M", "1G", "17179869184G"]);
        let spans = [0, 59, 60, 3661, 90_000].map(|s| span(Duration::from_secs(s)));
        assert_eq!(spans, ["0s", "59s", "1m 0s", "1h 1m", "1d 1h"]);
    }

    fn summary() -> AppSummary {
        AppSummary {
            name: Some("hello".parse().unwrap()),
            id: AppId::from("guid"),
            phase: Some(Phase::Started),
            wanted: Some(3),
            running: 1,
            starting: 1,
            crashed: 1,
            memory_mib: Some(Mib(64)),
            disk_mib: Some(Mib(128)),
            uris: vec!["hello.localhost".to_owned()],
            buildpack: None,
        }
    }

    #[test]
    fn a_list_of_apps() {
        let mut elsewhere = summary();
        (elsewhere.name, elsewhere.phase, elsewhere.wanted, elsewhere.memory_mib) = (None, None, None, None);
        let table = apps_table(&[summary(), elsewhere]);
        let words: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[0], ["name", "state", "instances", "memory", "disk", "routes"]);
        assert_eq!(words[1], ["hello", "started", "1/3,", "1", "starting,", "1", "crashed", "64M", "128M", "hello.localhost"]);
        assert_eq!(words[2][..4], ["(guid)", "pushed", "elsewhere", "1/?,"]);
    }

    #[test]
    fn an_app_with_an_instance() {
        let instance = InstanceReport {
            index: 0,
            state: InstanceState::Running,
            since: UnixSeconds(1.0),
            uptime_seconds: Some(61),
            cpu: Some(0.123),
            memory_bytes: Some(3 << 20),
            memory_quota_bytes: Some(64 << 20),
            disk_bytes: None,
            disk_quota_bytes: None,
            address: Some("10.0.0.1:61001".to_owned()),
            agent: CellId::from("agent"),
            id: InstanceId::from("id"),
            version: "v".to_owned(),
            crash: None,
        };
        let report = AppReport {
            summary: summary(),
            version: None,
            droplet_sha1: None,
            start_command: Some("./hello".to_owned()),
            package: None,
            instances: vec![instance],
        };
        let table = app_table(&report);
        let last: Vec<&str> = table.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(last, ["0", "running", "1m", "1s", "12.3%", "3M", "of", "64M", "–", "10.0.0.1:61001", "agent"]);
        let crash = Crash {
            exit_status: -1,
            exit_description: "wasm trap: unreachable\n  0: shop!main".to_owned(),
            last_lines: vec!["about to go".to_owned(), "\u{1b}[2Jgone".to_owned()],
        };
        let crashed = InstanceReport { state: InstanceState::Crashed, crash: Some(crash), ..report.instances[0].clone() };
        let table = app_table(&AppReport { instances: vec![crashed], ..report });
        let told = "\n\ninstance 0 crashed: wasm trap: unreachable (exit status -1)\n  0: shop!main\nlast lines of its log:\n  about to go\n  \\u{1b}[2Jgone";
        assert!(table.ends_with(told), "{table}");
        assert!(table.contains("command:") && table.contains("./hello"), "{table}");
    }
}
