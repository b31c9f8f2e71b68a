//! The table of attacks in the README is this program's own.

use std::fmt::Write as _;
use std::path::Path;

use expect_test::expect_file;

use crate::attack::Attack;

const HEADING: &str = "## The attacks\n";

/// The README's table.
pub(crate) fn table(attacks: &[Attack]) -> String {
    let mut table = format!("{HEADING}\n{} attacks.\n\n| attack | what holds against it |\n|---|---|\n", attacks.len());
    for Attack { name, held_by, .. } in attacks {
        writeln!(table, "| `{name}` | {held_by} |").unwrap();
    }
    table
}

/// Whether the README has that table. `UPDATE_EXPECT=1` writes it there.
pub(crate) fn check(table: &str) {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/hostile/README.md")).unwrap();
    let (before, _) = readme.split_once(HEADING).expect("the README has that heading");
    expect_file!["README.md"].assert_eq(&format!("{before}{table}"));
}
