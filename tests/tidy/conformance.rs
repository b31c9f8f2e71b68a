//! The conformance table names, for every item of the protocol's checklist, the test that shows it, or says why there is none.
//!
//! Read strictly, so that no line can look like evidence without being it: a named test must exist, be a test, and run.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::root;

const TABLE: &str = "tests/protocol/CONFORMANCE.md";

/// The checklist's items are numbered from 1 to this.
const ITEMS: u32 = 614;

/// A reason in fewer words than this tells nobody anything.
const LEAST_WORDS: usize = 5;

#[test]
fn every_item_of_the_protocol_is_shown_or_has_a_reason() {
    let table = fs::read_to_string(root().join(TABLE)).unwrap();
    let faults = faults(&table, ITEMS, &|path| fs::read_to_string(root().join(path)).ok());
    assert!(faults.is_empty(), "{TABLE}:\n{}", faults.join("\n"));
}

/// Everything that is wrong with a table of so many items without the open ones. `read` gives the text of a file of the tree.
fn faults(table: &str, items: u32, read: &impl Fn(&str) -> Option<String>) -> Vec<String> {
    let (mut faults, mut seen) = (Vec::new(), BTreeSet::new());
    for (number, line) in table.lines().enumerate() {
        match row(line) {
            Ok(None) => {}
            Ok(Some(row)) => {
                if !(1..=items).contains(&row.item) {
                    faults.push(format!("line {}: there is no item {}", number + 1, row.item));
                } else if !seen.insert(row.item) {
                    faults.push(format!("line {}: item {} has a line already", number + 1, row.item));
                }
                faults.extend(row.evidence_faults(read).map(|fault| format!("line {}: {fault}", number + 1)));
            }
            Err(fault) => faults.push(format!("line {}: {fault}", number + 1)),
        }
    }
    faults.extend((1..=items).filter(|item| !seen.contains(item)).map(|item| format!("item {item} has no line")));
    faults
}

struct Row<'a> {
    item: u32,
    evidence: &'a str,
}

/// What a line says of an item; nothing where it is prose, or a table's head.
fn row(line: &str) -> Result<Option<Row<'_>>, String> {
    let Some(cells) = line.strip_prefix("| ").and_then(|line| line.strip_suffix(" |")) else {
        let is_prose = !line.contains("DEA-") && (!line.starts_with('|') || line == "|---|---|---|");
        return if is_prose { Ok(None) } else { Err(format!("unknown form: {line}")) };
    };
    match *cells.split(" | ").collect::<Vec<_>>() {
        ["item", "what it says", "shown by"] => Ok(None),
        [item, text, evidence] => {
            let digits = item.strip_prefix("DEA-").filter(|digits| digits.len() == 3 && digits.bytes().all(|byte| byte.is_ascii_digit()));
            let item = digits.and_then(|digits| digits.parse().ok()).ok_or_else(|| format!("no number of an item: {item}"))?;
            if text.split_whitespace().count() < 2 { Err(format!("item {item} says nothing")) } else { Ok(Some(Row { item, evidence })) }
        }
        _ => Err(format!("not three cells: {line}")),
    }
}

impl Row<'_> {
    fn evidence_faults(&self, read: &impl Fn(&str) -> Option<String>) -> impl Iterator<Item = String> {
        let found = match self.evidence.strip_prefix("n/a: ") {
            Some(reason) if reason.split_whitespace().count() < LEAST_WORDS => vec![format!("no reason: {reason}")],
            Some(_) => Vec::new(),
            None => self.evidence.split(", ").filter_map(|named| test_fault(named, read).err()).collect(),
        };
        found.into_iter()
    }
}

/// Whether `path/to/file.rs#name` names a test.
fn test_fault(named: &str, read: &impl Fn(&str) -> Option<String>) -> Result<(), String> {
    let (path, name) = named.split_once('#').ok_or_else(|| format!("neither a test nor a reason: {named}"))?;
    let stem = path.strip_suffix(".rs").and_then(|path| Path::new(path).file_name()?.to_str());
    let stem = stem.filter(|_| !path.contains("..")).ok_or_else(|| format!("no source file: {path}"))?;
    let text = read(path).ok_or_else(|| format!("no such file: {path}"))?;
    let main = path.rsplit_once('/').and_then(|(folder, _)| read(&format!("{folder}/main.rs"))).unwrap_or_default();
    let is_test = is_function_under_test(&text, name) || is_trial(&text, &main, stem, name);
    if is_test { Ok(()) } else { Err(format!("no such test, or it does not run: {named}")) }
}

/// A function with the attribute that makes it a test, and without the one that keeps it from running.
fn is_function_under_test(text: &str, name: &str) -> bool {
    let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
    let begins = |line: &str| line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ").is_some_and(|rest| is_call(rest, name));
    lines.iter().enumerate().filter(|(_, line)| begins(line)).any(|(at, _)| {
        let attributes = || lines[..at].iter().rev().take_while(|line| line.starts_with("#[") || line.starts_with("//"));
        attributes().any(|line| *line == "#[test]" || line.starts_with("#[tokio::test"))
            && !attributes().any(|line| line.starts_with("#[ignore"))
    })
}

/// A scenario that the list in `main.rs` runs, or one that is named by a literal.
fn is_trial(text: &str, main: &str, stem: &str, name: &str) -> bool {
    let is_scenario = text.lines().any(|line| {
        let line = line.strip_prefix("pub(crate) ").unwrap_or(line);
        line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ").is_some_and(|rest| is_call(rest, name))
    });
    let is_listed = main.lines().any(|line| line.trim().trim_end_matches(',') == format!("{stem}::{name}"));
    (is_scenario && is_listed) || text.contains(&format!("\"{stem}::{name}\""))
}

fn is_call(text: &str, name: &str) -> bool {
    !name.is_empty() && text.strip_prefix(name).is_some_and(|rest| rest.starts_with('('))
}

/// Faults of a table of two items, with a tree of two files.
fn faults_of(rows: &[&str]) -> Vec<String> {
    let read = |path: &str| {
        match path {
        "src/a.rs" => Some(
            "#[test]\nfn works() {\n#[test]\n#[ignore = \"slow\"]\nfn sleeps() {\nfn helps() {\n    #[tokio::test(x)]\n    async fn waits() {\n"
                .to_owned(),
        ),
        "tests/agent/bus.rs" => Some("pub(crate) async fn runs() {\npub(crate) async fn forgotten() {\nraw(\"bus::attack\")".to_owned()),
        "tests/agent/main.rs" => Some("trials![\n    bus::runs,\n];".to_owned()),
        _ => None,
    }
    };
    let table = format!("# Title\n\nProse.\n\n| item | what it says | shown by |\n|---|---|---|\n{}\n", rows.join("\n"));
    faults(&table, 2, &read)
}

#[test]
fn a_table_in_order_has_no_faults() {
    let good = [
        "| DEA-001 | something works | src/a.rs#works, src/a.rs#waits |",
        "| DEA-002 | something else | tests/agent/bus.rs#runs, tests/agent/bus.rs#attack |",
    ];
    assert_eq!(faults_of(&good), [] as [String; 0]);
    assert_eq!(faults_of(&[good[0], "| DEA-002 | of another time | n/a: there are no containers of that kind here |"]), [] as [String; 0]);
}

#[test]
fn each_kind_of_fault_in_a_table_is_noticed() {
    let first = "| DEA-001 | something works | src/a.rs#works |";
    let second_faults = |evidence: &str| faults_of(&[first, &format!("| DEA-002 | something else | {evidence} |")]);
    for (evidence, fault) in [
        ("src/a.rs#helps", "line 8: no such test, or it does not run: src/a.rs#helps"),
        ("src/a.rs#sleeps", "line 8: no such test, or it does not run: src/a.rs#sleeps"),
        ("src/a.rs#work", "line 8: no such test, or it does not run: src/a.rs#work"),
        ("src/a.rs#", "line 8: no such test, or it does not run: src/a.rs#"),
        ("src/b.rs#works", "line 8: no such file: src/b.rs"),
        ("src/../src/a.rs#works", "line 8: no source file: src/../src/a.rs"),
        ("src/a#works", "line 8: no source file: src/a"),
        ("tests/agent/bus.rs#forgotten", "line 8: no such test, or it does not run: tests/agent/bus.rs#forgotten"),
        ("it is so", "line 8: neither a test nor a reason: it is so"),
        ("n/a: not here", "line 8: no reason: not here"),
        ("n/a", "line 8: neither a test nor a reason: n/a"),
        ("src/a.rs#works src/a.rs#works", "line 8: no such test, or it does not run: src/a.rs#works src/a.rs#works"),
    ] {
        assert_eq!(second_faults(evidence), [fault]);
    }
    assert_eq!(faults_of(&[first]), ["item 2 has no line"]);
    assert_eq!(faults_of(&[first, first]), ["line 8: item 1 has a line already", "item 2 has no line"]);
    for (line, fault) in [
        ("| DEA-003 | one too many | src/a.rs#works |", "line 8: there is no item 3"),
        ("| DEA-2 | a short number | src/a.rs#works |", "line 8: no number of an item: DEA-2"),
        ("| DEA-002 | | src/a.rs#works |", "line 8: not three cells: | DEA-002 | | src/a.rs#works |"),
        ("| DEA-002 | x | src/a.rs#works |", "line 8: item 2 says nothing"),
        ("|DEA-002|something|src/a.rs#works|", "line 8: unknown form: |DEA-002|something|src/a.rs#works|"),
        ("DEA-002 is fine", "line 8: unknown form: DEA-002 is fine"),
    ] {
        assert_eq!(faults_of(&[first, line]), [fault, "item 2 has no line"]);
    }
}
