//! Guests that fill the disk.

use std::sync::Arc;

use dewar_protocol::Bytes;

use crate::attack::{Attack, command, driver, raw};
use crate::fixture::Instance;

pub(crate) fn attacks() -> Vec<Attack> {
    vec![
        driver("disk::one_huge_file", "bytes are charged before they are written")
            .asks("/fs/fill?path=/tmp/a&chunk=1000000", "200")
            .serves_on(),
        command("disk::a_command_writes_on", "the same ledger", &["write:/tmp/a=2000000", "write:/app/a=2000000"])
            .dies("app instance exited"),
        driver("disk::an_inode_bomb", "every name is charged")
            .asks("/fs/fill-inodes?path=/tmp&limit=1000000", "200 100\nStorageFull")
            .serves_on(),
        raw("disk::an_exbibyte_by_its_length", "a length is charged, however sparse the file")
            .asks("/fs/set-size?path=a&size=1152921504606846976", "200 insufficient-space")
            .asks("/fs/set-size?path=a&size=18446744073709551615", "200 insufficient-space")
            .serves_on(),
        raw("disk::a_byte_at_two_to_the_63", "an offset is a length")
            .asks("/fs/write-at?path=a&offset=9223372036854775807", "200 insufficient-space")
            .asks("/fs/write-at?path=a&offset=9223372036854775808", "200 insufficient-space")
            .asks("/fs/write-at?path=a&offset=18446744073709551615", "200 insufficient-space")
            .serves_on(),
        raw("disk::files_without_a_name", "what is open stays charged until it is closed")
            .asks("/fs/hold?path=-&count=1000&bytes=65536", "200 16 insufficient-space")
            .does(holds_nothing_after_its_end)
            .dies("killed"),
        raw("disk::directories_within_directories", "each is a name; what removes them does not recurse")
            .quota(|quota| (quota.disk, quota.inodes) = (Bytes(64 << 20), 600))
            .asks("/fs/deep?path=d&limit=1000000", "200 600 insufficient-space|500")
            .serves_on(),
        driver("disk::all_stores_write_at_once", "the ledger is one, and writes reserve their end")
            .asks_at_once(10, "/fs/append?path=/tmp/shared&bytes=400000", "200|422")
            .serves_on(),
        driver("disk::all_stores_make_files_at_once", "names are made one at a time")
            .asks_at_once(6, "/fs/fill-inodes?path=/tmp&limit=1000", "200")
            .serves_on(),
        driver("disk::renames_over_one_another", "what a rename takes away is settled with it")
            .asks_at_once(4, "/fs/write?path=/tmp/a&bytes=300000", "200|422")
            .asks_at_once(4, "/fs/write?path=/tmp/b&bytes=300000", "200|422")
            .asks_at_once(8, "/fs/rename?path=/tmp/a&to=/tmp/b", "200|422 NotFound")
            .asks("/fs/write?path=/app/c&bytes=400000", "200 400000")
            .serves_on(),
        raw("disk::a_directory_with_thousands_of_entries", "a listing is read as it is asked for")
            .quota(|quota| quota.inodes = 5_000)
            .does(list_thousands)
            .serves_on(),
    ]
}

async fn holds_nothing_after_its_end(app: Arc<Instance>) {
    assert_eq!(app.sandbox.usage().disk, Bytes(1 << 20), "all of it is charged, though no file has a name");
    app.sandbox.kill();
    app.exit().await;
    crate::fixture::eventually("the files are closed", || app.sandbox.usage().disk == Bytes(0)).await;
}

async fn list_thousands(app: Arc<Instance>) {
    std::fs::create_dir(app.tmp_dir().join("d")).unwrap();
    for number in 0..4_000 {
        std::fs::write(app.tmp_dir().join(format!("d/{number}")), "").unwrap();
    }
    let lists = futures::future::join_all((0..4).map(|_| app.ok("/fs/list?path=d"))).await;
    assert!(lists.iter().all(|count| count == "4000"), "{lists:?}");
}
