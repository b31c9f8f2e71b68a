use super::*;

fn rule(protocol: &str, destination: &str, ports: Option<&str>) -> EgressRule {
    EgressRule {
        protocol: protocol.into(),
        destination: destination.into(),
        ports: ports.map(Into::into),
        icmp_type: None,
        code: None,
        log: None,
    }
}

fn everybody() -> [EgressRule; 2] {
    [rule("all", "0.0.0.0/0", None), rule("all", "::/0", None)]
}

fn tcp(policy: &EgressPolicy, address: &str) -> bool {
    policy.allows(Transport::Tcp, address.parse().unwrap())
}

#[test]
fn nothing_is_allowed_by_default() {
    for policy in [EgressPolicy::default(), EgressPolicy::new(&[]).unwrap()] {
        assert!(!tcp(&policy, "8.8.8.8:53") && !tcp(&policy, "127.0.0.1:80") && !policy.allows_any(Transport::Tcp));
    }
}

#[test]
fn protocol_destination_and_port_must_all_match() {
    let policy = EgressPolicy::new(&[rule("tcp", "8.8.0.0/16", Some("53, 80-90"))]).unwrap();
    for (address, allowed) in [("8.8.8.8:53", true), ("8.8.8.8:90", true), ("8.8.8.8:91", false), ("8.9.0.0:53", false)] {
        assert_eq!(tcp(&policy, address), allowed, "{address}");
    }
    assert!(!policy.allows(Transport::Udp, "8.8.8.8:53".parse().unwrap()));
    assert!(!policy.allows_any(Transport::Udp));
    assert!(policy.allows_some_port("8.8.8.8".parse().unwrap()) && !policy.allows_some_port("8.9.0.0".parse().unwrap()));
    let with_more = EgressRule { icmp_type: Some(8), code: Some(0), log: Some(true), ..rule("tcp", "8.8.8.8", Some("53")) };
    let policy = EgressPolicy::new(&[with_more]).unwrap();
    assert!(tcp(&policy, "8.8.8.8:53") && !tcp(&policy, "8.8.8.8:54"), "fields of icmp, and to be logged, mean nothing to tcp");
}

#[test]
fn special_addresses_need_a_rule_that_names_them() {
    let everybody = EgressPolicy::new(&everybody()).unwrap();
    assert!(tcp(&everybody, "8.8.8.8:1") && tcp(&everybody, "[2606:4700::1]:1"));
    let special = [
        "127.0.0.1:1",
        "10.1.2.3:1",
        "192.168.0.1:1",
        "172.31.0.1:1",
        "100.64.0.1:1",
        "224.0.0.1:1",
        "255.255.255.255:1",
        "[::1]:1",
        "[::ffff:127.0.0.1]:1",
        "[::ffff:10.0.0.1]:1",
        "[::127.0.0.1]:1",
        "[::ffff:0:127.0.0.1]:1",
        "[fd00::1]:1",
        "[fec0::1]:1",
        "[64:ff9b::7f00:1]:1",
        "[64:ff9b:1::1]:1",
        "[2002:7f00:1::]:1",
        "[2001:0:808:808::f5ff:fffe]:1",
        "[2606:4700::5efe:10.0.0.1]:1",
        "[ff02::1]:1",
        "[2001:db8::1]:1",
        "[4000::1]:1",
        "[8000::1]:1",
    ];
    for address in special {
        assert!(!tcp(&everybody, address), "{address}");
    }
    let named = EgressPolicy::new(&[
        rule("tcp", "10.0.0.1-10.0.0.9", None),
        rule("tcp", "127.0.0.1", None),
        rule("tcp", "::1", None),
        rule("tcp", "::ffff:172.16.0.0/108", None),
    ])
    .unwrap();
    for address in ["10.0.0.9:1", "127.0.0.1:1", "[::ffff:127.0.0.1]:1", "[::1]:1", "172.31.0.1:1"] {
        assert!(tcp(&named, address), "{address}");
    }
    assert!(!tcp(&named, "10.0.0.10:1") && !tcp(&named, "127.0.0.2:1") && !tcp(&named, "172.32.0.1:1"));
}

#[test]
fn the_unspecified_address_is_nobodys() {
    let policy = EgressPolicy::new(&[rule("all", "0.0.0.0", None), rule("all", "::", None), rule("all", "0.0.0.0/8", None)]).unwrap();
    for address in ["0.0.0.0:1", "[::]:1", "[::ffff:0.0.0.0]:1"] {
        assert!(!tcp(&policy, address), "{address}");
    }
}

#[test]
fn an_address_that_carries_another_is_judged_as_both() {
    let translated = EgressPolicy::new(&[rule("tcp", "64:ff9b::/96", None), rule("tcp", "10.0.0.0/8", None)]).unwrap();
    assert!(tcp(&translated, "[64:ff9b::8.8.8.8]:1") && tcp(&translated, "[64:ff9b::10.0.0.1]:1"));
    for address in ["[64:ff9b::127.0.0.1]:1", "[64:ff9b::169.254.169.254]:1", "[64:ff9b::192.168.0.1]:1"] {
        assert!(!tcp(&translated, address), "{address}");
    }
}

#[test]
fn what_the_operator_denies_no_rule_opens() {
    let allow = [rule("tcp", "10.0.0.0/8", Some("443"))];
    let operator = OperatorEgress::new(&allow, &["10.9.0.0/16".into(), "8.8.4.4".into()], &["Secret.Example.".into()]).unwrap();
    let app = [rule("all", "10.9.0.1", None), rule("all", "8.8.4.4", None), rule("all", "8.8.8.8", None), rule("all", "2002::/16", None)];
    let policy = operator.policy(&app).unwrap();
    assert!(tcp(&policy, "8.8.8.8:1"), "the app's rule");
    assert!(tcp(&policy, "10.0.0.1:443") && !tcp(&policy, "10.0.0.1:444"), "the operator's rule");
    for address in ["10.9.0.1:443", "8.8.4.4:53", "[::ffff:8.8.4.4]:53", "[2002:808:404::1]:53"] {
        assert!(!tcp(&policy, address), "{address}");
    }
    for (name, allowed) in
        [("secret.example", false), ("secret.example.", false), ("a.secret.example", false), ("top-secret.example", true)]
    {
        assert_eq!(policy.allows_name(name), allowed, "{name}");
    }
}

#[test]
fn metadata_services_are_denied_where_the_operator_says_nothing() {
    let mut rules = everybody().to_vec();
    let metadata =
        ["169.254.169.254", "169.254.170.2", "fe80::1", "fd00:ec2::254", "168.63.129.16", "100.100.100.200", "::ffff:169.254.169.254"];
    rules.extend(metadata.map(|address| rule("all", address, None)));
    let policy = EgressPolicy::new(&rules).unwrap();
    for address in metadata {
        assert!(!policy.allows(Transport::Tcp, SocketAddr::new(address.parse().unwrap(), 80)), "{address}");
        assert!(!policy.allows_some_port(address.parse().unwrap()), "{address}");
    }
    assert!(!policy.allows_name("metadata.google.internal."));
}

#[test]
fn addresses_of_this_host_need_a_rule_of_their_own() {
    // Loopback is a block that rules may open as a whole; the address that the host has towards others is not.
    let all = EgressPolicy::new(&[rule("tcp", "127.0.0.0/8", None)]).unwrap();
    assert!(tcp(&all, "127.0.0.1:1"));
    let probe = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    // Nothing is sent: it only makes the system choose the address to send from. A host without a network has none.
    if probe.connect("192.0.2.1:9").is_err() {
        return;
    }
    let own = probe.local_addr().unwrap().ip();
    let around = match own {
        IpAddr::V4(own) => format!("{own}/24"),
        IpAddr::V6(own) => format!("{own}/64"),
    };
    let address = SocketAddr::new(own, 80);
    assert!(!EgressPolicy::new(&[rule("tcp", &around, None)]).unwrap().allows(Transport::Tcp, address), "{own} in {around}");
    assert!(EgressPolicy::new(&[rule("tcp", &own.to_string(), None)]).unwrap().allows(Transport::Tcp, address), "{own}");
}

#[test]
fn what_is_not_understood_is_refused_by_name() {
    let refused = |r: EgressRule| EgressPolicy::new(&[r]).unwrap_err().to_string();
    assert_eq!(refused(rule("sctp", "1.1.1.1", None)), "understand egress protocol \"sctp\"");
    for destination in ["", "example.com", "1.1.1.1/33", "2.2.2.2-1.1.1.1", "1.1.1.1-::1", "1.1.1.1/-1", "::1/129"] {
        assert_eq!(refused(rule("tcp", destination, None)), format!("understand egress destination {destination:?}"));
    }
    for ports in ["", "x", "1-", "9-8", "65536", "1,,2"] {
        assert_eq!(refused(rule("tcp", "1.1.1.1", Some(ports))), format!("understand egress ports {ports:?}"));
    }
    assert!(refused(rule("icmp", "nowhere", None)).contains("nowhere"));
    assert!(!tcp(&EgressPolicy::new(&[rule("icmp", "8.8.8.8", None)]).unwrap(), "8.8.8.8:1"));
    let denied = OperatorEgress::new(&[], &["somewhere".into()], &[]).unwrap_err();
    assert_eq!(denied.to_string(), "understand egress destination \"somewhere\"");
    let name = OperatorEgress::new(&[], &[], &["127.0.0.1".into()]).unwrap_err();
    assert_eq!(name.to_string(), "understand denied name \"127.0.0.1\"");
}
