//! Stagings with everything real: packages over HTTP, buildpacks in sandboxes, droplets on disk, and a controller that takes them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod cache;
mod droplet;
mod hostile;
mod interruption;
mod secure;
mod selection;
mod world;

#[path = "../../src/agent/test_server.rs"]
#[expect(dead_code, reason = "these tests need a part of what it can do")]
mod test_server;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("compile-component") {
        return dewar_sandbox::compile_child();
    }
    libtest_mimic::run(&Arguments::from_args(), trials()).exit_code()
}

/// One trial a scenario, each in a runtime of its own and with a limit on its time.
macro_rules! trials {
    ($($module:ident :: $scenario:ident),+ $(,)?) => {
        fn trials() -> Vec<Trial> {
            vec![$(Trial::test(concat!(stringify!($module), "::", stringify!($scenario)), || {
                world::run($module::$scenario());
                Ok(())
            })),+]
        }
    };
}

trials![
    droplet::a_component_becomes_a_droplet,
    droplet::a_site_becomes_a_droplet,
    droplet::the_same_input_gives_the_same_bytes_anywhere,
    droplet::buildpacks_see_their_environment,
    droplet::the_start_command_comes_from_whoever_has_the_say,
    droplet::a_buildpack_cannot_reach_out_of_its_directories,
    droplet::a_buildpack_reaches_the_network_only_where_it_may,
    selection::the_first_that_detects_wins,
    selection::a_failing_detection_is_a_no,
    selection::a_buildpack_by_key_is_not_asked,
    selection::a_buildpack_by_url_is_not_asked,
    selection::setup_failures_say_what_is_wrong,
    cache::the_same_package_is_not_staged_twice,
    cache::a_lost_droplet_is_made_again,
    cache::a_buildpack_cache_stays_with_its_app,
    cache::a_controller_keeps_the_buildpack_cache,
    cache::a_buildpack_cache_that_is_of_no_use_is_none,
    cache::a_buildpack_cache_that_cannot_be_kept_is_not,
    secure::packages_come_over_tls_from_whom_the_system_trusts,
    hostile::packages_that_are_none,
    hostile::no_buildpack_detects_the_app,
    hostile::buildpacks_that_fail,
    hostile::buildpacks_that_never_end,
    hostile::components_that_cannot_run,
    hostile::uploads_that_are_refused,
    hostile::a_full_disk,
    interruption::a_staging_that_is_stopped_leaves_nothing,
    interruption::a_staging_that_is_dropped_leaves_nothing,
    interruption::what_a_killed_process_left_is_removed,
    interruption::two_pushes_of_one_app_at_once,
];
