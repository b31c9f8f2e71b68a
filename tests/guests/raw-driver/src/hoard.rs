//! Handles without end, kept until the store goes.

use std::any::Any;
use std::cell::RefCell;

use dewar_guest::wasip2::cli::{stderr, stdin, stdout};
use dewar_guest::wasip2::clocks::monotonic_clock::subscribe_duration;
use dewar_guest::wasip2::filesystem::preopens::get_directories;
use dewar_guest::wasip2::http::types::{Fields, OutgoingRequest, OutgoingResponse, RequestOptions};
use dewar_guest::wasip2::io::poll;
use dewar_guest::wasip2::sockets::network::IpAddressFamily;
use dewar_guest::wasip2::sockets::{instance_network, tcp_create_socket, udp_create_socket};

thread_local! {
    static KEPT: RefCell<Vec<Box<dyn Any>>> = const { RefCell::new(Vec::new()) };
}

/// Takes so many handles of a kind; how many there were when the host said no, unless it ended the store.
pub(crate) fn hoard(kind: &str, count: u64) -> String {
    for kept in 0..count {
        match one(kind) {
            Ok(handle) => KEPT.with_borrow_mut(|handles| handles.push(handle)),
            Err(error) => return format!("{kept} {error}"),
        }
    }
    count.to_string()
}

fn one(kind: &str) -> Result<Box<dyn Any>, String> {
    Ok(match kind {
        "fields" => Box::new(Fields::new()),
        "requests" => Box::new(OutgoingRequest::new(Fields::new())),
        "responses" => Box::new(OutgoingResponse::new(Fields::new())),
        "options" => Box::new(RequestOptions::new()),
        "pollables" => Box::new(subscribe_duration(u64::MAX)),
        "directories" => Box::new(get_directories()),
        "entries" => Box::new(get_directories()[0].0.read_directory().map_err(|error| error.name().to_owned())?),
        "streams" => Box::new((stdin::get_stdin(), stdout::get_stdout(), stderr::get_stderr())),
        "networks" => Box::new(instance_network::instance_network()),
        "tcp-sockets" => Box::new(tcp_create_socket::create_tcp_socket(IpAddressFamily::Ipv4).map_err(|error| error.name().to_owned())?),
        "udp-sockets" => Box::new(udp_create_socket::create_udp_socket(IpAddressFamily::Ipv4).map_err(|error| error.name().to_owned())?),
        _ => panic!("{kind}: no such handle"),
    })
}

/// Polls a list that names one pollable so many times; how many of them were ready.
pub(crate) fn poll(count: u64) -> String {
    let ready = subscribe_duration(0);
    let list = vec![&ready; usize::try_from(count).unwrap_or(usize::MAX)];
    poll::poll(&list).len().to_string()
}
