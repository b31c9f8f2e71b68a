//! Whole agents with everything real: an embedded broker over TCP, droplets over HTTP, wasm in sandboxes, files.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod burst;
mod bus;
mod ends;
mod health;
mod host;
mod housekeeping;
mod https;
mod leaving;
mod lifecycle;
mod staging;
mod storm;
mod telemetry;
mod world;

#[path = "../free_port.rs"]
mod free_port;
#[path = "../../src/agent/test_authority.rs"]
mod test_authority;
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
    lifecycle::from_start_message_to_stop,
    lifecycle::a_command_is_running_once_it_listens,
    lifecycle::an_app_without_routes_runs_at_once,
    lifecycle::log_lines_are_kept_and_followed,
    lifecycle::shutdown_stops_everything,
    health::an_http_check_waits_for_a_200,
    health::a_path_that_never_answers_200_is_told_to_the_developer,
    health::a_state_file_has_to_say_running,
    health::no_check_is_running_at_once,
    leaving::who_has_not_heard_of_a_stop_yet_is_answered,
    leaving::an_evacuated_instance_serves_until_it_is_stopped,
    leaving::out_of_placement_instances_run_on,
    leaving::switched_off_subjects_are_silent,
    ends::a_crash_is_told_with_its_backtrace,
    ends::a_core_dump_is_kept_with_the_logs_of_its_crash,
    ends::an_app_that_never_listens_is_unhealthy,
    ends::a_port_is_free_once_its_routes_are_withdrawn,
    ends::a_command_without_a_command_line_does_not_start,
    ends::a_droplet_that_cannot_be_had_fails_the_start,
    ends::a_taken_port_is_skipped_and_none_left_is_an_error,
    ends::stopping_while_starting_leaves_nothing,
    bus::a_malformed_message_does_no_harm,
    bus::a_burst_of_starts_does_not_block_the_agent,
    bus::after_an_outage_everything_is_announced_again,
    burst::all_that_shall_run_run_and_all_that_shall_end_end,
    storm::a_thousand_starts_with_stops_among_them,
    bus::an_agent_waits_for_its_server,
    bus::an_agent_ends_without_its_server,
    bus::routers_that_answer_the_greeting_get_all_routes,
    staging::a_package_becomes_a_running_app,
    staging::a_package_that_cannot_be_had_fails_the_setup,
    staging::a_stopped_app_is_no_longer_staged,
    https::an_app_is_started_over_https,
    https::strangers_are_not_let_in,
    https::a_staging_over_https_is_reported_and_then_started,
    https::buildpacks_are_fetched_before_they_are_needed,
    https::an_agent_that_does_not_stage_asks_for_no_buildpacks,
    https::heartbeats_reach_a_health_manager_over_https_also_without_a_bus,
    host::a_directory_has_one_agent,
    host::status_needs_credentials_and_tells_no_secrets,
    housekeeping::a_crash_that_there_is_no_room_for_goes,
    housekeeping::a_directory_that_belongs_to_nobody_goes_and_a_crash_stays,
    housekeeping::droplets_that_nobody_uses_go_at_the_start_if_none_are_to_be_kept,
    host::an_agent_without_instances_lists_none,
    host::a_pid_file_lives_as_long_as_the_agent,
    telemetry::prometheus_scrapes_the_agent_and_its_instances,
    telemetry::loggregator_gets_lines_and_metrics,
    telemetry::a_loggregator_without_an_address_is_no_start,
    telemetry::an_otlp_collector_gets_metrics,
];
