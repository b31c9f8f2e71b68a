use std::collections::BTreeMap;

use dewar_protocol::AppId;
use proptest::prelude::*;

use super::*;

fn at(seconds: u64) -> Mono {
    Mono(Duration::from_secs(seconds))
}

fn message(port: u16, uris: &[&str]) -> RouteRegistration {
    RouteRegistration {
        host: "10.0.0.1".into(),
        port,
        uris: uris.iter().map(|&uri| uri.to_owned()).collect(),
        app: Some("app".into()),
        private_instance_id: Some(format!("id-{port}")),
        private_instance_index: Some((port % 10).to_string()),
        ..RouteRegistration::default()
    }
}

fn checked(message: &RouteRegistration) -> Registration {
    Registration::check(message).unwrap()
}

struct Table(RouteTable<()>);

impl Table {
    fn new(limits: RouteLimits) -> Self {
        let mut table = RouteTable::new(limits);
        table.bus_up(at(0));
        Self(table)
    }

    fn register(&mut self, seconds: u64, port: u16, uris: &[&str]) -> Result<(), Refusal> {
        self.0.register(at(seconds), checked(&message(port, uris)), |_| ())
    }

    fn unregister(&mut self, port: u16, uris: &[&str]) {
        self.0.unregister(&checked(&message(port, uris)));
    }

    /// The port that a request ends up at, or how it was refused.
    fn ask(&self, seconds: u64, host: &str) -> String {
        name(&self.0.pick(at(seconds), host, Wish::Any, &[]))
    }
}

fn name(pick: &Pick<()>) -> String {
    match pick {
        Pick::Endpoint(lease) => lease.info.address.port().to_string(),
        Pick::UnknownHost => "unknown host".into(),
        Pick::UnknownInstance => "unknown instance".into(),
        Pick::NoEndpoints => "no endpoints".into(),
        Pick::Overloaded => "overloaded".into(),
        Pick::Exhausted => "exhausted".into(),
    }
}

#[test]
fn a_uri_names_a_host() {
    for (uri, key) in [
        ("Shop.Example.NET", Some("shop.example.net")),
        ("shop.example.net/cart/1", Some("shop.example.net")),
        ("shop.example.net:8080/cart", Some("shop.example.net")),
        ("shop.example.net.", Some("shop.example.net")),
        ("my_app.example.net", Some("my_app.example.net")),
        ("*.Example.net", Some("*.example.net")),
        ("127.0.0.1:80", Some("127.0.0.1")),
        ("[::1]:80", Some("[::1]")),
        ("", None),
        ("/path", None),
        ("*", None),
        ("*.", None),
        ("a.*.net", None),
        ("*.*.net", None),
        (".example.net", None),
        ("a..b", None),
        ("a b", None),
        ("user@host", None),
        ("host:port", None),
        ("host:123456", None),
        ("[::1", None),
        ("[::1]x", None),
        ("bücher.example", None),
    ] {
        assert_eq!(RouteKey::parse(uri).ok().map(|key| key.to_string()).as_deref(), key, "{uri:?}");
    }
    assert!(RouteKey::parse(&"a".repeat(MAX_HOST_LENGTH)).is_ok());
    assert!(RouteKey::parse(&"a".repeat(MAX_HOST_LENGTH + 1)).is_err());
    assert_eq!(RouteKey::parse(&"a".repeat(MAX_URI_LENGTH + 1)), Err(UriRefused::TooLong(MAX_URI_LENGTH + 1)));
}

#[test]
fn a_lower_case_host_header_is_not_copied() {
    assert!(matches!(request_host("shop.example.net:8080"), Some(std::borrow::Cow::Borrowed("shop.example.net"))));
    assert!(matches!(request_host("Shop.example.net"), Some(std::borrow::Cow::Owned(_))));
}

#[test]
fn a_hostile_registration_is_refused_with_its_cause() {
    let good = message(61001, &["a.example"]);
    let refused = |change: &dyn Fn(&mut RouteRegistration)| {
        let mut bad = good.clone();
        change(&mut bad);
        Registration::check(&bad).unwrap_err().to_string()
    };
    assert!(refused(&|m| m.host = "db.internal".into()).contains("db.internal"));
    assert!(refused(&|m| m.host = "0.0.0.0".into()).contains("0.0.0.0"));
    assert!(refused(&|m| m.host = "224.0.0.1".into()).contains("224.0.0.1"));
    assert!(refused(&|m| m.port = 0).contains("port 0"));
    assert!(refused(&|m| m.private_instance_id = Some("x\r\nSet-Cookie: a".into())).contains("private_instance_id"));
    assert!(refused(&|m| m.private_instance_index = Some("9".repeat(MAX_FIELD_LENGTH + 1))).contains("private_instance_index"));
    assert!(refused(&|m| m.app = Some("a b".into())).contains("app"));
    assert!(refused(&|m| m.tags = (0..=MAX_TAGS).map(|n| (n.to_string(), String::new())).collect()).contains("tags"));
    assert!(refused(&|m| m.uris = vec!["a.example".into(); MAX_URIS + 1]).contains("1001 uris"));
}

#[test]
fn a_bad_uri_does_not_take_the_good_ones_down() {
    let registration = checked(&message(61001, &["a.example", "not a host", "b.example"]));
    assert_eq!(registration.passed_over, Some(UriRefused::NoHost("not a host".into())));
    let mut table = Table::new(RouteLimits::default());
    table.0.register(at(0), registration, |_| ()).unwrap();
    assert_eq!(table.ask(0, "a.example"), "61001");
    assert_eq!(table.ask(0, "b.example"), "61001");
}

#[test]
fn a_wildcard_catches_what_no_closer_route_has() {
    let mut table = Table::new(RouteLimits::default());
    table.register(0, 61001, &["*.example.net"]).unwrap();
    table.register(0, 61002, &["shop.example.net"]).unwrap();
    table.register(0, 61003, &["*.shop.example.net"]).unwrap();
    for (host, end) in [
        ("shop.example.net", "61002"),
        ("other.example.net", "61001"),
        ("deep.other.example.net", "61001"),
        ("a.shop.example.net", "61003"),
        ("example.net", "unknown host"),
        ("net", "unknown host"),
        (".example.net", "unknown host"),
    ] {
        let header_is_host = request_host(host).is_some();
        assert_eq!(if header_is_host { table.ask(0, host) } else { "unknown host".into() }, end, "{host}");
    }
}

#[test]
fn an_unregistered_host_is_unknown_and_a_pruned_one_has_no_endpoints_for_a_while() {
    let mut table = Table::new(RouteLimits::default());
    table.register(0, 61001, &["a.example", "b.example"]).unwrap();
    table.unregister(61001, &["a.example"]);
    assert_eq!(table.ask(0, "a.example"), "unknown host");
    assert_eq!(table.ask(0, "b.example"), "61001");

    assert_eq!(table.0.prune(at(120)), 0);
    assert_eq!(table.0.prune(at(121)), 1);
    assert_eq!(table.ask(121, "b.example"), "no endpoints");
    assert_eq!(table.ask(240, "b.example"), "no endpoints");
    assert_eq!(table.ask(241, "b.example"), "unknown host");
    assert_eq!((table.0.route_count(), table.0.endpoint_count()), (0, 0));

    table.register(130, 61002, &["b.example"]).unwrap();
    assert_eq!(table.ask(241, "b.example"), "61002");
}

#[test]
fn a_registration_may_ask_to_be_forgotten_sooner_but_not_later() {
    let mut table = Table::new(RouteLimits::default());
    for (port, seconds) in [(61001, 10), (61002, 1000), (61003, 0)] {
        let asked = RouteRegistration { stale_threshold_in_seconds: Some(seconds), ..message(port, &[&format!("h{port}")]) };
        table.0.register(at(0), checked(&asked), |_| ()).unwrap();
    }
    assert_eq!(table.0.prune(at(11)), 1);
    assert_eq!(table.ask(11, "h61001"), "no endpoints");
    assert_eq!(table.0.prune(at(120)), 0);
    assert_eq!(table.0.prune(at(121)), 2);
}

#[test]
fn nothing_is_pruned_while_the_bus_is_down_and_everything_is_fresh_when_it_is_back() {
    let mut table = Table::new(RouteLimits::default());
    table.register(0, 61001, &["a.example"]).unwrap();
    table.0.bus_down();
    assert_eq!(table.0.prune(at(10_000)), 0);
    assert_eq!(table.ask(10_000, "a.example"), "61001");
    table.0.bus_up(at(10_000));
    assert_eq!(table.0.prune(at(10_120)), 0);
    assert_eq!(table.0.prune(at(10_121)), 1);
}

#[test]
fn a_table_that_never_saw_the_bus_prunes_nothing() {
    let mut table: RouteTable<()> = RouteTable::new(RouteLimits::default());
    table.register(at(0), checked(&message(61001, &["a.example"])), |_| ()).unwrap();
    assert_eq!(table.prune(at(10_000)), 0);
}

#[test]
fn an_address_that_changes_hands_loses_its_old_routes() {
    let mut table = Table::new(RouteLimits::default());
    table.register(0, 61001, &["old.example", "both.example"]).unwrap();
    let taken = RouteRegistration { private_instance_id: Some("other".into()), ..message(61001, &["new.example", "both.example"]) };
    table.0.register(at(1), checked(&taken), |_| ()).unwrap();
    assert_eq!(table.ask(1, "old.example"), "unknown host");
    assert_eq!(table.ask(1, "new.example"), "61001");
    assert_eq!(table.ask(1, "both.example"), "61001");
    assert_eq!((table.0.route_count(), table.0.endpoint_count()), (2, 1));
}

#[test]
fn new_facts_about_the_same_instance_reach_all_its_routes() {
    let mut table = Table::new(RouteLimits::default());
    let first = RouteRegistration { private_instance_index: None, ..message(61001, &["a.example"]) };
    table.0.register(at(0), checked(&first), |_| ()).unwrap();
    table.register(1, 61001, &["b.example"]).unwrap();
    let Pick::Endpoint(lease) = table.0.pick(at(1), "a.example", Wish::Any, &[]) else { panic!("a.example is known") };
    assert_eq!(lease.info.index.as_deref(), Some("1"));
}

#[test]
fn hosts_share_the_endpoint_and_its_count() {
    let mut table = Table::new(RouteLimits { max_in_flight: 1, ..RouteLimits::default() });
    table.register(0, 61001, &["a.example", "b.example"]).unwrap();
    let held = table.0.pick(at(0), "a.example", Wish::Any, &[]);
    assert_eq!(name(&held), "61001");
    assert_eq!(table.ask(0, "b.example"), "overloaded");
    drop(held);
    assert_eq!(table.ask(0, "b.example"), "61001");
}

#[test]
fn every_endpoint_has_its_turn() {
    let mut table = Table::new(RouteLimits::default());
    for port in 61001..=61003 {
        table.register(0, port, &["a.example"]).unwrap();
    }
    let round: Vec<_> = (0..6).map(|_| table.ask(0, "a.example")).collect();
    assert_eq!(round[..3], round[3..]);
    let mut sorted = round[..3].to_vec();
    sorted.sort();
    assert_eq!(sorted, ["61001", "61002", "61003"]);
}

#[test]
fn the_least_busy_endpoint_is_picked_and_equals_take_turns() {
    let mut table = Table::new(RouteLimits { balancing: Balancing::LeastConnections, ..RouteLimits::default() });
    for port in 61001..=61003 {
        table.register(0, port, &["a.example"]).unwrap();
    }
    let mut held: Vec<_> = (0..3).map(|_| table.0.pick(at(0), "a.example", Wish::Any, &[])).collect();
    let mut names: Vec<_> = held.iter().map(name).collect();
    names.sort();
    assert_eq!(names, ["61001", "61002", "61003"]);
    let freed = name(&held.remove(1));
    assert_eq!(table.ask(0, "a.example"), freed);
    assert_eq!(table.ask(0, "a.example"), freed);
}

#[test]
fn a_failed_endpoint_is_passed_over_for_a_while_unless_all_have_failed() {
    let mut table = Table::new(RouteLimits::default());
    table.register(0, 61001, &["a.example"]).unwrap();
    table.register(0, 61002, &["a.example"]).unwrap();
    let fail = |port: u16| {
        let Pick::Endpoint(lease) = table.0.pick(at(0), "a.example", Wish::Sticky(&format!("id-{port}")), &[]) else { panic!("known") };
        lease.mark_failed(at(0), Duration::from_secs(10));
    };
    fail(61001);
    assert!((0..4).all(|_| table.ask(9, "a.example") == "61002"));
    assert!((0..4).any(|_| table.ask(10, "a.example") == "61001"), "it is picked again after the while");
    fail(61002);
    assert!((0..4).any(|_| table.ask(9, "a.example") == "61001"));
    assert!((0..4).any(|_| table.ask(9, "a.example") == "61002"));
}

#[test]
fn what_was_tried_is_not_picked_again() {
    let mut table = Table::new(RouteLimits::default());
    table.register(0, 61001, &["a.example"]).unwrap();
    table.register(0, 61002, &["a.example"]).unwrap();
    let address = |port| SocketAddr::from(([10, 0, 0, 1], port));
    let pick = |wish, tried: &[SocketAddr]| name(&table.0.pick(at(0), "a.example", wish, tried));
    assert_eq!(pick(Wish::Any, &[address(61001)]), "61002");
    assert_eq!(pick(Wish::Sticky("id-61001"), &[address(61001)]), "61002");
    assert_eq!(pick(Wish::Any, &[address(61001), address(61002)]), "exhausted");
}

#[test]
fn a_wish_is_granted_or_refused() {
    let mut table = Table::new(RouteLimits::default());
    for port in 61001..=61003 {
        table.register(0, port, &["a.example"]).unwrap();
    }
    let pick = |wish| name(&table.0.pick(at(0), "a.example", wish, &[]));
    assert!((0..5).all(|_| pick(Wish::Sticky("id-61002")) == "61002"));
    assert!(pick(Wish::Sticky("id-of-nobody")).starts_with("6100"));
    assert!((0..5).all(|_| pick(Wish::Instance { app: "app", index: "3" }) == "61003"));
    assert_eq!(pick(Wish::Instance { app: "app", index: "9" }), "unknown instance");
    assert_eq!(pick(Wish::Instance { app: "other", index: "3" }), "unknown instance");
}

#[test]
fn a_full_table_keeps_what_it_has_and_takes_refreshes() {
    let mut table = Table::new(RouteLimits { max_routes: 2, max_endpoints_per_host: 1, ..RouteLimits::default() });
    table.register(0, 61001, &["a.example"]).unwrap();
    assert_eq!(table.register(0, 61002, &["a.example"]), Err(Refusal::HostFull("a.example".into(), 1)));
    assert_eq!(table.0.endpoint_count(), 1, "an endpoint without a route is not kept");
    assert_eq!(table.register(0, 61002, &["b.example", "c.example"]), Err(Refusal::TableFull(2)));
    assert_eq!(table.ask(0, "b.example"), "61002");
    assert_eq!(table.ask(0, "c.example"), "unknown host");
    table.register(100, 61001, &["a.example"]).unwrap();
    assert_eq!(table.0.prune(at(121)), 1, "only the route that was not refreshed");
}

/// What the table must be, written as a flat list that is searched from end to end.
#[derive(Debug, Default)]
struct Model {
    routes: Vec<ModelRoute>,
    emptied: BTreeMap<&'static str, u64>,
    bus_is_up: bool,
}

#[derive(Debug, Clone)]
struct ModelRoute {
    uri: &'static str,
    port: u16,
    owner: u8,
    refreshed: u64,
}

const URIS: [&str; 4] = ["a.example", "b.example", "*.example", "*.b.example"];
const HOSTS: [&str; 6] = ["a.example", "b.example", "c.example", "x.b.example", "example", "other"];

#[derive(Debug, Clone)]
enum Step {
    Register { port: u16, owner: u8, uris: Vec<&'static str> },
    Unregister { port: u16, uris: Vec<&'static str> },
    Prune,
    BusDown,
    BusUp,
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let uris = || proptest::sample::subsequence(URIS.to_vec(), 1..=3);
    prop_oneof![
        6 => (1u16..5, 0u8..2, uris()).prop_map(|(port, owner, uris)| Step::Register { port, owner, uris }),
        3 => (1u16..5, uris()).prop_map(|(port, uris)| Step::Unregister { port, uris }),
        3 => Just(Step::Prune),
        1 => Just(Step::BusDown),
        1 => Just(Step::BusUp),
        4 => (1u64..90).prop_map(Step::Wait),
    ]
}

impl Model {
    fn apply(&mut self, now: u64, step: &Step) {
        match step {
            Step::Register { port, owner, uris } => {
                self.routes.retain(|route| route.port != *port || route.owner == *owner);
                for &uri in uris {
                    self.routes.retain(|route| route.port != *port || route.uri != uri);
                    self.routes.push(ModelRoute { uri, port: *port, owner: *owner, refreshed: now });
                    self.emptied.remove(uri);
                }
            }
            Step::Unregister { port, uris } => self.routes.retain(|route| route.port != *port || !uris.contains(&route.uri)),
            Step::Prune if self.bus_is_up => {
                let (fresh, stale): (Vec<_>, Vec<_>) = self.routes.drain(..).partition(|route| now - route.refreshed <= 120);
                self.routes = fresh;
                for route in stale {
                    if !self.routes.iter().any(|other| other.uri == route.uri) {
                        self.emptied.insert(route.uri, now);
                    }
                }
            }
            Step::Prune | Step::Wait(_) => {}
            Step::BusDown => self.bus_is_up = false,
            Step::BusUp => {
                self.bus_is_up = true;
                self.routes.iter_mut().for_each(|route| route.refreshed = now);
            }
        }
    }

    /// The ports that a host leads to; `None` when it is unknown.
    fn ports(&self, now: u64, host: &str) -> Option<Vec<u16>> {
        let mut candidates = vec![host.to_owned()];
        candidates.extend(host.match_indices('.').map(|(dot, _)| format!("*{}", &host[dot..])));
        candidates.into_iter().find_map(|uri| {
            let mut ports: Vec<_> = self.routes.iter().filter(|route| route.uri == uri).map(|route| route.port).collect();
            ports.sort_unstable();
            let recently_emptied = self.emptied.get(uri.as_str()).is_some_and(|since| now - since < 120);
            (!ports.is_empty() || recently_emptied).then_some(ports)
        })
    }
}

fn apply(table: &mut RouteTable<()>, now: u64, step: &Step) {
    let owned = |port: u16, owner: u8, uris: &[&str]| RouteRegistration {
        app: Some(AppId(owner.to_string())),
        private_instance_id: None,
        ..message(port, uris)
    };
    match step {
        Step::Register { port, owner, uris } => table.register(at(now), checked(&owned(*port, *owner, uris)), |_| ()).unwrap(),
        Step::Unregister { port, uris } => table.unregister(&checked(&owned(*port, 0, uris))),
        Step::Prune => {
            table.prune(at(now));
        }
        Step::BusDown => table.bus_down(),
        Step::BusUp => table.bus_up(at(now)),
        Step::Wait(_) => {}
    }
}

/// A found seed is kept beside this file: proptest's own choice would be a folder among the crates.
fn config() -> ProptestConfig {
    let beside = proptest::test_runner::FileFailurePersistence::WithSource("proptest-regressions");
    ProptestConfig { failure_persistence: Some(Box::new(beside)), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_table_agrees_with_the_model(steps in proptest::collection::vec(step(), 1..60), least in any::<bool>()) {
        let balancing = if least { Balancing::LeastConnections } else { Balancing::RoundRobin };
        let mut table = RouteTable::new(RouteLimits { balancing, ..RouteLimits::default() });
        let mut model = Model::default();
        let mut now = 0;
        for step in &steps {
            if let Step::Wait(seconds) = step {
                now += seconds;
            }
            apply(&mut table, now, step);
            model.apply(now, step);
            prop_assert_eq!(table.route_count(), model.routes.len());
            let mut ports: Vec<_> = model.routes.iter().map(|route| route.port).collect();
            ports.sort_unstable();
            ports.dedup();
            prop_assert_eq!(table.endpoint_count(), ports.len());
            for host in HOSTS {
                let expected = model.ports(now, host);
                // One whole round: every endpoint exactly once.
                let round: Vec<_> = (0..expected.as_ref().map_or(1, |ports| ports.len().max(1)))
                    .map(|_| table.pick(at(now), host, Wish::Any, &[]))
                    .collect();
                match expected {
                    None => prop_assert!(matches!(round[..], [Pick::UnknownHost]), "{} {:?}", host, round),
                    Some(ports) if ports.is_empty() => prop_assert!(matches!(round[..], [Pick::NoEndpoints]), "{} {:?}", host, round),
                    Some(ports) => {
                        let mut picked: Vec<_> = round.iter().map(|pick| name(pick).parse::<u16>().unwrap_or(0)).collect();
                        picked.sort_unstable();
                        prop_assert_eq!(picked, ports);
                    }
                }
            }
        }
    }

    #[test]
    fn no_host_header_panics_or_yields_what_is_no_key(header in ".{0,40}") {
        if let Some(host) = request_host(&header) {
            prop_assert!(!host.starts_with('.') && !host.is_empty());
            let again = request_host(&host);
            prop_assert_eq!(again.as_deref(), Some(&*host), "the form is stable");
        }
    }
}

proptest! {
    #![proptest_config(config())]

    /// Whatever a client calls the host, what is looked up is in one form, short, and nothing but a name or an address.
    #[test]
    fn a_host_has_one_form(header in prop_oneof![any::<String>(), "[a-zA-Z0-9.:*_\\[\\]/,@ -]{0,40}", "([a-z]{60}\\.){0,6}[a-z]{0,9}(:[0-9]{0,6})?"]) {
        if let Some(host) = request_host(&header) {
            let again = request_host(&host);
            prop_assert_eq!(again.as_deref(), Some(&*host), "of {:?}", header);
            prop_assert!(host.len() <= MAX_HOST_LENGTH && !host.is_empty());
            prop_assert!(!host.bytes().any(|b| b.is_ascii_uppercase() || !b.is_ascii_graphic() || b"/,@*".contains(&b)), "{host:?}");
        }
        if let Ok(key) = RouteKey::parse(&header) {
            prop_assert_eq!(RouteKey::parse(&key.to_string()), Ok(key), "of {:?}", header);
        }
    }
}
