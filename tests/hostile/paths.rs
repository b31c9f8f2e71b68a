//! Guests that look for a way out of their directories.

use std::os::unix::fs::symlink;
use std::sync::Arc;

use futures::future::join;

use crate::attack::{Attack, driver, raw};
use crate::fixture::Instance;

/// What WASI says about a path that leads out, or nowhere.
const REFUSED: &str = "200 not-permitted|200 no-entry|200 invalid|200 access|200 illegal-byte-sequence|200 loop|200 not-directory|500";

pub(crate) fn attacks() -> Vec<Attack> {
    vec![
        raw("paths::dots_that_lead_up", "paths are resolved one step at a time, beneath the directory")
            .asks_each(
                &[
                    "/fs/open?path=../..",
                    "/fs/open?path=../../../../../../etc/passwd",
                    "/fs/open?path=./../../../etc/passwd",
                    "/fs/open?path=x/../../../etc/passwd",
                    "/fs/open?path=..//..//..//etc//passwd",
                    "/fs/open?path=../tmp/../../",
                    "/fs/stat?path=..",
                    "/fs/list?path=..",
                ],
                REFUSED,
            )
            .serves_on(),
        raw("paths::absolute_paths", "no path is absolute")
            .asks_each(
                &[
                    "/fs/open?path=/etc/passwd",
                    "/fs/open?path=//etc/passwd",
                    "/fs/open?path=/proc/self/environ",
                    "/fs/open?path=/proc/self/root/etc",
                ],
                REFUSED,
            )
            .serves_on(),
        raw("paths::odd_spellings", "a path is bytes between slashes, nothing else has a meaning")
            .asks_each(
                &[
                    "/fs/open?path=%2525%252e%252e/etc/passwd",
                    "/fs/open?path=..%5c..%5cetc%5cpasswd",
                    "/fs/open?path=%00",
                    "/fs/open?path=a%00/../../etc/passwd",
                    "/fs/open?path=%e2%80%a5/etc/passwd",
                    "/fs/open?path=",
                ],
                REFUSED,
            )
            .serves_on(),
        raw("paths::odd_names", "names are the file system's own affair, up to 255 bytes")
            .asks_each(
                &[
                    "/fs/create?path=%f0%9f%a6%80",
                    "/fs/create?path=%e2%80%aetxt.exe",
                    "/fs/create?path=%20",
                    "/fs/create?path=...",
                    "/fs/create?path=a%0ab",
                ],
                "200 done",
            )
            .asks(&format!("/fs/create?path={}", "n".repeat(256)), "200 name-too-long")
            .asks(&format!("/fs/create?path={}", "d/".repeat(3000)), "200 name-too-long|200 no-entry|200 invalid")
            .serves_on(),
        raw("paths::links_that_lead_out", "a link is followed beneath the directory or not at all")
            .asks_each(&["/fs/symlink?path=/etc&to=absolute", "/fs/symlink?path=/etc/passwd&to=a"], "200 not-permitted|200 done")
            .asks_each(&["/fs/symlink?path=../..&to=up", "/fs/symlink?path=../../../../../etc/passwd&to=far"], "200 done|200 not-permitted")
            .asks_each(
                &["/fs/open?path=absolute/passwd", "/fs/open?path=a", "/fs/open?path=up/app", "/fs/open?path=far", "/fs/list?path=up/"],
                REFUSED,
            )
            .asks("/fs/create?path=up/planted", REFUSED)
            .does(nothing_beside)
            .serves_on(),
        raw("paths::links_that_somebody_planted", "links in a droplet are no better than the guest's own")
            .does(planted_links)
            .asks_each(
                &["/fs/open?path=planted", "/fs/open?path=root/etc/passwd", "/fs/create?path=root/tmp/dewar-hostile", "/fs/list?path=root"],
                REFUSED,
            )
            .serves_on(),
        raw("paths::links_in_a_circle", "a path follows so many links and no more")
            .asks_each(&["/fs/symlink?path=b&to=a", "/fs/symlink?path=a&to=b", "/fs/symlink?path=.&to=here"], "200 done")
            .asks_each(&["/fs/open?path=a", "/fs/open?path=a/b/a", "/fs/create?path=b"], REFUSED)
            .asks(&format!("/fs/open?path={}a", "here/".repeat(100)), REFUSED)
            .serves_on(),
        raw("paths::renames_that_lead_out", "both ends of a rename are beneath their directories, also with slashes behind them")
            .asks("/fs/create?path=a", "200 done")
            .asks("/fs/symlink?path=../..&to=link", "200 done|200 not-permitted")
            .asks_each(
                &[
                    "/fs/rename?path=a&to=../../planted",
                    "/fs/rename?path=a&to=../planted",
                    "/fs/rename?path=a&to=link/planted",
                    "/fs/rename?path=a&to=/planted",
                    "/fs/rename?path=../app&to=stolen",
                    "/fs/rename?path=link/&to=moved/",
                    "/fs/rename-to-app?path=a&to=../../planted",
                ],
                REFUSED,
            )
            .does(nothing_beside)
            .serves_on(),
        raw("paths::other_ways_to_make_a_name", "every operation resolves its paths in the same way")
            .asks("/fs/create?path=a", "200 done")
            .asks_each(
                &[
                    "/fs/link?path=a&to=../planted",
                    "/fs/link?path=../../../../etc/passwd&to=stolen",
                    "/fs/create-dir?path=../planted",
                    "/fs/symlink?path=a&to=../planted",
                    "/fs/create?path=../planted",
                    "/fs/remove?path=../app",
                    "/fs/remove-dir?path=../app",
                ],
                REFUSED,
            )
            .does(nothing_beside)
            .serves_on(),
        raw("paths::a_hard_link_to_a_directory", "there is no such thing")
            .asks("/fs/create-dir?path=d", "200 done")
            .asks("/fs/link?path=d&to=e", "200 not-permitted|200 access")
            .serves_on(),
        raw(
            "paths::a_directory_that_becomes_a_link",
            "each step is taken from an open directory, so that nothing can be swapped in between",
        )
        .does(swap_under_foot)
        .serves_on(),
        driver("paths::the_root_itself", "the directories that are given cannot be written, moved or removed as files")
            .asks_each(
                &[
                    "/fs/write?path=/app&bytes=1",
                    "/fs/write?path=/&bytes=1",
                    "/fs/remove-dir?path=/app",
                    "/fs/remove?path=/tmp",
                    "/fs/rename?path=/app&to=/tmp/app",
                ],
                "422",
            )
            .serves_on(),
        driver("paths::what_the_host_has_in_its_environment", "a guest has the environment that it was given and no other")
            .env("GIVEN", "to the guest")
            .does(environment)
            .serves_on(),
    ]
}

/// Only the instance's own directories are in theirs.
async fn nothing_beside(app: Arc<Instance>) {
    let mut names: Vec<_> = std::fs::read_dir(app.app_dir().parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["app", "tmp"]);
}

async fn planted_links(app: Arc<Instance>) {
    symlink("/etc/passwd", app.tmp_dir().join("planted")).unwrap();
    symlink("/", app.tmp_dir().join("root")).unwrap();
}

/// One store opens a path while another makes a link of its first directory and back.
async fn swap_under_foot(app: Arc<Instance>) {
    let root = app.app_dir().parent().unwrap().to_owned();
    std::fs::write(root.join("secret"), "secret").unwrap();
    std::fs::create_dir(app.tmp_dir().join("d")).unwrap();
    std::fs::create_dir(app.tmp_dir().join("e")).unwrap();
    symlink("..", app.tmp_dir().join("link")).unwrap();
    let swapping = async {
        for _ in 0..60 {
            for (from, to) in [("d", "kept"), ("link", "d"), ("d", "link"), ("kept", "d")] {
                assert_eq!(app.ok(&format!("/fs/rename?path={from}&to={to}")).await, "done");
            }
        }
    };
    let opening = async {
        for _ in 0..240 {
            let seen = app.ok("/fs/open?path=d/secret").await;
            assert_ne!(seen, "done", "it was opened through a link that leads out");
        }
    };
    join(swapping, opening).await;
    std::fs::remove_file(root.join("secret")).unwrap();
}

async fn environment(app: Arc<Instance>) {
    let given = app.ok("/env").await;
    let names: Vec<&str> = given.lines().filter_map(|line| line.split('=').next()).collect();
    assert_eq!(names, ["GIVEN", "PORT"]);
}
