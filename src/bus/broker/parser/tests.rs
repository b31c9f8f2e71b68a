use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { control_line: 256, payload: 1000 };

fn op(input: &str) -> Result<Op<'_>, Violation> {
    match parse(input.as_bytes(), LIMITS)? {
        Parsed::Op { op, length } => {
            assert_eq!(length, input.len(), "{input:?} has bytes left");
            Ok(op)
        }
        Parsed::Incomplete { at_least } => panic!("{input:?} needs {at_least} bytes"),
    }
}

fn publish<'a>(subject: &'a str, reply: Option<&'a str>, headers: Option<usize>, body: &'a str) -> Op<'a> {
    Op::Publish(Publish { subject: subject.as_bytes(), reply: reply.map(str::as_bytes), headers, body: body.as_bytes() })
}

#[test]
fn operations_of_a_client() {
    let table = [
        ("PING\r\n", Op::Ping),
        ("ping\n", Op::Ping),
        ("PONG \r\n", Op::Pong),
        ("CONNECT {\"verbose\": false}\r\n", Op::Connect { options: b"{\"verbose\": false}" }),
        ("connect\t{}\r\n", Op::Connect { options: b"{}" }),
        ("CONNECT\r\n", Op::Connect { options: b"" }),
        ("PUB a 2\r\nhi\r\n", publish("a", None, None, "hi")),
        ("pub  a.b\tre 002 \r\nhi\r\n", publish("a.b", Some("re"), None, "hi")),
        ("PUB a 0\r\n\r\n", publish("a", None, None, "")),
        ("PUB a 4\n\r\n\r\n\r\n", publish("a", None, None, "\r\n\r\n")),
        ("HPUB a 12 14\r\nNATS/1.0\r\n\r\nhi\r\n", publish("a", None, Some(12), "NATS/1.0\r\n\r\nhi")),
        ("hpub a re 0 0\r\n\r\n", publish("a", Some("re"), Some(0), "")),
        ("SUB a.> 1\r\n", Op::Subscribe { subject: b"a.>", queue: None, sid: b"1" }),
        ("SUB a g x9\r\n", Op::Subscribe { subject: b"a", queue: Some(b"g"), sid: b"x9" }),
        ("UNSUB 1\r\n", Op::Unsubscribe { sid: b"1", max: None }),
        ("UNSUB 1 5\r\n", Op::Unsubscribe { sid: b"1", max: Some(5) }),
        ("UNSUB 1 0\r\n", Op::Unsubscribe { sid: b"1", max: None }),
        ("UNSUB 1 -5\r\n", Op::Unsubscribe { sid: b"1", max: None }),
        ("UNSUB 1 x\r\n", Op::Unsubscribe { sid: b"1", max: None }),
    ];
    for (input, expected) in table {
        assert_eq!(op(input), Ok(expected), "{input:?}");
    }
}

#[test]
fn what_ends_a_connection() {
    let long = format!("SUB {} 1\r\n", "a".repeat(300));
    let table = [
        ("\r\n", Violation::Protocol),
        (" PING\r\n", Violation::Protocol),
        ("GET / HTTP/1.1\r\n", Violation::Protocol),
        ("\u{16}\u{3}\u{1}", Violation::Protocol),
        ("PUBX a 1\r\n", Violation::Protocol),
        ("CONNECTION {}\r\n", Violation::Protocol),
        ("P\r\n", Violation::Protocol),
        ("PUB\r\n", Violation::Protocol),
        ("PUB a\r\n", Violation::Protocol),
        ("PUB a b c 1\r\n", Violation::Protocol),
        ("PUB a b c d 1\r\n", Violation::Protocol),
        ("PUB a -1\r\n", Violation::Protocol),
        ("PUB a +1\r\n", Violation::Protocol),
        ("PUB a 1e3\r\n", Violation::Protocol),
        ("PUB a 99999999999999999999\r\n", Violation::Protocol),
        ("PUB a 1001\r\n", Violation::Payload),
        ("PUB a 1\r\nab\r\n", Violation::Protocol),
        ("PUB a 1\r\na\n", Violation::Protocol),
        ("PUB a 1\r\na\rx", Violation::Protocol),
        ("HPUB a 3\r\n", Violation::Protocol),
        ("HPUB a 3 2\r\n", Violation::Protocol),
        ("HPUB a 3 1001\r\n", Violation::Payload),
        ("SUB\r\n", Violation::Protocol),
        ("SUB a\r\n", Violation::Protocol),
        ("SUB a b c d\r\n", Violation::Protocol),
        ("UNSUB\r\n", Violation::Protocol),
        ("UNSUB 1 2 3\r\n", Violation::Protocol),
        (&long, Violation::ControlLine),
        (&long[..256], Violation::ControlLine),
    ];
    for (input, violation) in table {
        assert_eq!(parse(input.as_bytes(), LIMITS), Err(violation), "{input:?}");
    }
}

/// All operations of `input`, which arrives in pieces that end at `cuts`.
fn parse_in_pieces(input: &[u8], cuts: &[usize]) -> Result<Vec<String>, Violation> {
    let mut operations = Vec::new();
    let (mut done, mut wanted) = (0, 1);
    for &arrived in cuts.iter().chain([&input.len()]) {
        while arrived - done >= wanted {
            match parse(&input[done..arrived], LIMITS)? {
                Parsed::Op { op, length } => {
                    operations.push(format!("{op:?}"));
                    (done, wanted) = (done + length, 1);
                }
                Parsed::Incomplete { at_least } => {
                    assert!(at_least > arrived - done, "wants {at_least}, has {}", arrived - done);
                    wanted = at_least;
                }
            }
        }
    }
    assert_eq!(done, input.len(), "bytes left over");
    Ok(operations)
}

#[test]
fn it_does_not_matter_where_the_network_cuts() {
    let input = b"CONNECT {}\r\nPING\r\nSUB a.* g 1\r\nPUB a.b re 7\r\nhi\r\nyou\r\nHPUB a 12 14\r\nNATS/1.0\r\n\r\nhi\r\nUNSUB 1 3\r\nPUB a 0\r\n\r\nPONG\r\n";
    let whole = parse_in_pieces(input, &[]).unwrap();
    assert_eq!(whole.len(), 8);
    for first in 0..input.len() {
        assert_eq!(parse_in_pieces(input, &[first]), Ok(whole.clone()), "cut at {first}");
        for second in first..input.len() {
            assert_eq!(parse_in_pieces(input, &[first, second]), Ok(whole.clone()), "cut at {first} and {second}");
        }
    }
    let every_byte: Vec<usize> = (0..input.len()).collect();
    assert_eq!(parse_in_pieces(input, &every_byte), Ok(whole));
}

fn word() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_filter("not a separator", |byte| !matches!(byte, b' ' | b'\t' | b'\r' | b'\n'));
    prop::collection::vec(byte, 1..20)
}

fn arguments(words: &[&[u8]]) -> Vec<u8> {
    words.join(&b' ')
}

/// An operation as bytes, and how its parsed form prints.
fn serialized_op() -> impl Strategy<Value = (Vec<u8>, String)> {
    let body = || prop::collection::vec(any::<u8>(), 0..200);
    let publish =
        (word(), prop::option::of(word()), body(), prop::option::of(0_usize..=200)).prop_map(|(subject, reply, body, headers)| {
            let headers = headers.map(|headers| headers.min(body.len()));
            let sizes = headers.map_or(body.len().to_string(), |headers| format!("{headers} {}", body.len()));
            let words: Vec<&[u8]> = [Some(&*subject), reply.as_deref(), Some(sizes.as_bytes())].into_iter().flatten().collect();
            let name: &[u8] = if headers.is_some() { b"HPUB " } else { b"PUB " };
            let bytes = [name, &arguments(&words), b"\r\n", &body, b"\r\n"].concat();
            (bytes, format!("{:?}", Op::Publish(Publish { subject: &subject, reply: reply.as_deref(), headers, body: &body })))
        });
    let subscribe = (word(), prop::option::of(word()), word()).prop_map(|(subject, queue, sid)| {
        let words: Vec<&[u8]> = [Some(&*subject), queue.as_deref(), Some(&*sid)].into_iter().flatten().collect();
        let bytes = [b"sub ", &*arguments(&words), b"\r\n"].concat();
        (bytes, format!("{:?}", Op::Subscribe { subject: &subject, queue: queue.as_deref(), sid: &sid }))
    });
    let unsubscribe = (word(), prop::option::of(1..u64::MAX)).prop_map(|(sid, max)| {
        let max_text = max.map_or(String::new(), |max| max.to_string());
        let bytes = [b"UNSUB ", &*sid, b" ", max_text.as_bytes(), b"\r\n"].concat();
        (bytes, format!("{:?}", Op::Unsubscribe { sid: &sid, max }))
    });
    prop_oneof![publish, subscribe, unsubscribe]
}

/// What becomes of `input` that arrives in pieces: its operations, and how it ends: left waiting, or refused.
fn fate(input: &[u8], cuts: &[usize]) -> (Vec<String>, Option<Violation>) {
    let mut operations = Vec::new();
    let (mut done, mut wanted) = (0, 1);
    for &arrived in cuts.iter().chain([&input.len()]) {
        while arrived - done >= wanted {
            match parse(&input[done..arrived], LIMITS) {
                Ok(Parsed::Op { op, length }) => {
                    operations.push(format!("{op:?}"));
                    (done, wanted) = (done + length, 1);
                }
                Ok(Parsed::Incomplete { at_least }) => wanted = at_least,
                Err(violation) => return (operations, Some(violation)),
            }
        }
    }
    // What is too short to be looked at again may be wrong already.
    (operations, parse(&input[done..], LIMITS).err())
}

proptest! {
    /// Whatever a sequence is damaged to, it is the same to the broker in one piece and in many.
    #[test]
    fn damage_is_seen_the_same_wherever_the_network_cuts(
        operations in prop::collection::vec(serialized_op(), 1..5),
        damages in prop::collection::vec((any::<prop::sample::Index>(), 0..4_usize, prop::collection::vec(any::<u8>(), 0..4)), 0..3),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let mut input: Vec<u8> = operations.into_iter().flat_map(|(bytes, _)| bytes).collect();
        for (at, cut, put) in damages {
            let at = at.index(input.len().max(1)).min(input.len());
            let end = (at + cut).min(input.len());
            drop(input.splice(at..end, put));
        }
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
        cuts.sort_unstable();
        let whole = fate(&input, &[]);
        prop_assert_eq!(&fate(&input, &cuts), &whole);
        let every_byte: Vec<usize> = (0..input.len()).collect();
        prop_assert_eq!(fate(&input, &every_byte), whole);
    }

    #[test]
    fn what_is_serialized_is_parsed((bytes, expected) in serialized_op(), after in prop::collection::vec(any::<u8>(), 0..20)) {
        let input = [&*bytes, &*after].concat();
        let Ok(Parsed::Op { op, length }) = parse(&input, LIMITS) else { return Err(TestCaseError::fail("not parsed")) };
        prop_assert_eq!(format!("{op:?}"), expected);
        prop_assert_eq!(length, bytes.len());
    }

    #[test]
    fn no_bytes_break_the_parser(name in prop::option::of(prop::sample::select(vec!["PUB ", "HPUB ", "SUB ", "UNSUB ", "CONNECT ", "P"])),
        bytes in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(b" \r\n019".to_vec())], 0..300))
    {
        let input = [name.unwrap_or_default().as_bytes(), &bytes].concat();
        match parse(&input, LIMITS) {
            Ok(Parsed::Op { length, .. }) => prop_assert!(length > 0 && length <= input.len()),
            Ok(Parsed::Incomplete { at_least }) => {
                prop_assert!(at_least > input.len());
                prop_assert!(at_least <= LIMITS.control_line + LIMITS.payload + 2);
            }
            Err(_) => {}
        }
    }
}
