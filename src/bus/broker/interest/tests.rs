use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

#[derive(Debug)]
struct Wish {
    id: usize,
    subject: String,
    queue: Option<String>,
}

impl Interested for Wish {
    fn subject(&self) -> &[u8] {
        self.subject.as_bytes()
    }

    fn queue(&self) -> Option<&[u8]> {
        self.queue.as_deref().map(str::as_bytes)
    }
}

/// The rule itself: token by token.
fn matches(wish: &str, subject: &str) -> bool {
    let wanted: Vec<&str> = wish.split('.').collect();
    let tokens: Vec<&str> = subject.split('.').collect();
    if tokens.contains(&"") {
        return false;
    }
    match wanted.split_last() {
        Some((&">", before)) => tokens.len() > before.len() && before.iter().zip(&tokens).all(|(w, t)| w == t || *w == "*"),
        _ => wanted.len() == tokens.len() && wanted.iter().zip(&tokens).all(|(w, t)| w == t || *w == "*"),
    }
}

/// Who is shown for a subject: the plain ones, and the members of each group.
fn shown(interest: &Interest<Wish>, subject: &str) -> (Vec<usize>, BTreeSet<(String, usize)>) {
    let (mut plain, mut grouped) = (Vec::new(), BTreeSet::new());
    interest.visit(subject.as_bytes(), &mut |receivers| {
        plain.extend(receivers.plain.iter().map(|wish| wish.id));
        for group in &receivers.groups {
            assert!(!group.members.is_empty());
            grouped.extend(group.members.iter().map(|wish| (String::from_utf8_lossy(&group.name).into_owned(), wish.id)));
        }
    });
    plain.sort_unstable();
    (plain, grouped)
}

#[test]
fn subjects_and_wildcards() {
    let table = [
        ("a", "a", true),
        ("a", "b", false),
        ("a", "a.b", false),
        ("*", "a", true),
        ("*", "a.b", false),
        ("a.*", "a.b", true),
        ("a.*", "a", false),
        ("a.*", "a.", false),
        ("a.*.c", "a.b.c", true),
        ("a.*.c", "a.b.d", false),
        ("a.*.c", "a..c", false),
        (">", "a", true),
        (">", "a.b.c", true),
        (">", "a..c", false),
        (">", "", false),
        ("a.>", "a.b", true),
        ("a.>", "a.b.c", true),
        ("a.>", "a", false),
        ("a.>", "b.a", false),
        ("*.b", "a.b", true),
        ("*.>", "a.b", true),
        ("*.>", "a", false),
        ("a.b*", "a.b*", true),
        ("a.b*", "a.bc", false),
        ("a.*", "a.*", true),
        ("a.*", "a.>", true),
        ("a.b", "a.*", false),
        ("A", "a", false),
    ];
    for (wish, subject, expected) in table {
        let mut interest = Interest::default();
        interest.insert(Arc::new(Wish { id: 1, subject: wish.to_owned(), queue: None }));
        assert_eq!(shown(&interest, subject).0.len(), usize::from(expected), "{wish} {subject}");
        assert_eq!(matches(wish, subject), expected, "the naive rule for {wish} {subject}");
    }
}

#[test]
fn as_deep_as_subjects_may_be() {
    let deep = vec!["*"; subject::MAX_WILDCARD_TOKENS].join(".");
    let wish = Arc::new(Wish { id: 1, subject: deep.clone(), queue: None });
    let mut interest = Interest::default();
    interest.insert(Arc::clone(&wish));
    assert_eq!(shown(&interest, &deep.replace('*', "x")).0, [1]);
    assert!(shown(&interest, &vec!["x"; 2000].join(".")).0.is_empty());
    interest.remove(&wish);
    assert!(interest.is_empty());
}

fn token() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["a", "b", "c", "*"])
}

fn wish_subject() -> impl Strategy<Value = String> {
    (prop::collection::vec(token(), 1..5), any::<bool>()).prop_map(|(mut tokens, tail)| {
        if tail {
            tokens.push(">");
        }
        tokens.join(".")
    })
}

fn published_subject() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c", "d", "*", ""]), 1..6).prop_map(|tokens| tokens.join("."))
}

proptest! {
    #[test]
    fn the_index_agrees_with_the_rule(
        wishes in prop::collection::vec((wish_subject(), prop::option::of("[gh]"), any::<bool>()), 0..40),
        subjects in prop::collection::vec(published_subject(), 1..20),
    ) {
        let wishes: Vec<(Arc<Wish>, bool)> = wishes
            .into_iter()
            .enumerate()
            .map(|(id, (subject, queue, stays))| (Arc::new(Wish { id, subject, queue }), stays))
            .collect();
        let mut interest = Interest::default();
        for (wish, _) in &wishes {
            interest.insert(Arc::clone(wish));
        }
        for (wish, stays) in &wishes {
            if !stays {
                interest.remove(wish);
                interest.remove(wish);
            }
        }
        for subject in &subjects {
            let matching = || wishes.iter().filter(|(wish, stays)| *stays && matches(&wish.subject, subject)).map(|(wish, _)| wish);
            let plain: Vec<usize> = matching().filter(|wish| wish.queue.is_none()).map(|wish| wish.id).collect();
            let grouped = matching().filter_map(|wish| Some((wish.queue.clone()?, wish.id))).collect();
            prop_assert_eq!(shown(&interest, subject), (plain, grouped), "subject {}", subject);
        }
        for (wish, _) in &wishes {
            interest.remove(wish);
        }
        prop_assert!(interest.is_empty());
    }
}
