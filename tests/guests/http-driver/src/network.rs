//! Ways out of the sandbox, each with the error code of the host as its answer.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};

use dewar_guest::types::Uri;
use dewar_guest::wasip2::http::{outgoing_handler, types as http};
use dewar_guest::wasip2::sockets::network::{IpAddress, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, Ipv6SocketAddress};
use dewar_guest::wasip2::sockets::tcp::TcpSocket;
use dewar_guest::wasip2::sockets::{instance_network::instance_network, ip_name_lookup, tcp_create_socket, udp, udp_create_socket};
use dewar_guest::{IntoResponse, Response};

use crate::query::Query;
use crate::{Answer, Refusal, lines, refused, text};

/// Attempts something once, or as often as `times` says and answers how often which outcome there was.
pub(crate) fn attempt(query: &Query, what: impl Fn(u64) -> Answer) -> Answer {
    let Ok(times) = query.number("times") else {
        return what(0);
    };
    let mut outcomes = BTreeMap::<String, u64>::new();
    for number in 0..times {
        let outcome = match what(number) {
            Ok(_) => "ok".to_owned(),
            Err(Refusal::Host(name, _)) => name,
            Err(refusal) => return Err(refusal),
        };
        *outcomes.entry(outcome).or_default() += 1;
    }
    lines(outcomes.iter().map(|(outcome, count)| format!("{outcome} {count}")))
}

fn address(text: &str) -> Result<(IpAddressFamily, IpSocketAddress), Refusal> {
    let address: SocketAddr = text.parse().map_err(|e| Refusal::Parameter(format!("to: {e}\n")))?;
    Ok(match address {
        SocketAddr::V4(v4) => {
            let [a, b, c, d] = v4.ip().octets();
            (IpAddressFamily::Ipv4, IpSocketAddress::Ipv4(Ipv4SocketAddress { port: v4.port(), address: (a, b, c, d) }))
        }
        SocketAddr::V6(v6) => {
            let [a, b, c, d, e, f, g, h] = v6.ip().segments();
            let address = (a, b, c, d, e, f, g, h);
            (IpAddressFamily::Ipv6, IpSocketAddress::Ipv6(Ipv6SocketAddress { port: v6.port(), flow_info: 0, address, scope_id: 0 }))
        }
    })
}

pub(crate) fn connect(to: &str) -> Answer {
    let (family, address) = address(to)?;
    let socket = tcp_create_socket::create_tcp_socket(family).map_err(|code| refused(code.name(), "create"))?;
    socket.start_connect(&instance_network(), address).map_err(|code| refused(code.name(), "start to connect"))?;
    socket.subscribe().block();
    let streams = socket.finish_connect().map_err(|code| refused(code.name(), "connect"))?;
    drop(streams);
    text("connected")
}

thread_local! {
    static SOCKETS: RefCell<Vec<TcpSocket>> = const { RefCell::new(Vec::new()) };
}

/// Makes sockets and keeps them.
pub(crate) fn sockets(count: u64) -> Answer {
    SOCKETS.with_borrow_mut(|kept| {
        for made in 0..count {
            match tcp_create_socket::create_tcp_socket(IpAddressFamily::Ipv4) {
                Ok(socket) => kept.push(socket),
                Err(code) => return text(&format!("{made}\n{}\n", code.name())),
            }
        }
        text(&format!("{count}\n"))
    })
}

pub(crate) fn bind(to: &str) -> Answer {
    let (family, address) = address(to)?;
    let socket = tcp_create_socket::create_tcp_socket(family).map_err(|code| refused(code.name(), "create"))?;
    socket.start_bind(&instance_network(), address).map_err(|code| refused(code.name(), "start to bind"))?;
    socket.finish_bind().map_err(|code| refused(code.name(), "bind"))?;
    socket.start_listen().map_err(|code| refused(code.name(), "start to listen"))?;
    socket.finish_listen().map_err(|code| refused(code.name(), "listen"))?;
    text("bound")
}

pub(crate) fn udp(to: &str) -> Answer {
    let (family, address) = address(to)?;
    let any = match family {
        IpAddressFamily::Ipv4 => self::address("0.0.0.0:0")?.1,
        IpAddressFamily::Ipv6 => self::address("[::]:0")?.1,
    };
    let socket = udp_create_socket::create_udp_socket(family).map_err(|code| refused(code.name(), "create"))?;
    socket.start_bind(&instance_network(), any).map_err(|code| refused(code.name(), "start to bind"))?;
    socket.finish_bind().map_err(|code| refused(code.name(), "bind"))?;
    let (_incoming, outgoing) = socket.stream(None).map_err(|code| refused(code.name(), "stream"))?;
    outgoing.subscribe().block();
    outgoing.check_send().map_err(|code| refused(code.name(), "permit"))?;
    let datagram = udp::OutgoingDatagram { data: b"http-driver".to_vec(), remote_address: Some(address) };
    outgoing.send(&[datagram]).map_err(|code| refused(code.name(), "send"))?;
    text("sent")
}

pub(crate) fn resolve(name: &str) -> Answer {
    let addresses = ip_name_lookup::resolve_addresses(&instance_network(), name).map_err(|code| refused(code.name(), "resolve"))?;
    let mut found = Vec::new();
    loop {
        addresses.subscribe().block();
        match addresses.resolve_next_address().map_err(|code| refused(code.name(), "resolve"))? {
            Some(IpAddress::Ipv4((a, b, c, d))) => found.push(IpAddr::from([a, b, c, d])),
            Some(IpAddress::Ipv6((a, b, c, d, e, f, g, h))) => found.push(IpAddr::from([a, b, c, d, e, f, g, h])),
            None => return lines(found.iter().map(ToString::to_string)),
        }
    }
}

pub(crate) fn fetch(query: &Query) -> Answer {
    let url: Uri = query.text("url")?.parse().map_err(|e| Refusal::Parameter(format!("url: {e}\n")))?;
    let scheme = match url.scheme_str() {
        Some("https") => http::Scheme::Https,
        _ => http::Scheme::Http,
    };
    let fields = http::Fields::new();
    for (name, value) in query.all("name").zip(query.all("value")) {
        fields.append(name, value.as_bytes()).map_err(|error| refused(&format!("{error:?}"), "field"))?;
    }
    let request = http::OutgoingRequest::new(fields);
    let method = query.text("method").unwrap_or("GET");
    request.set_method(&http::Method::Other(method.to_owned())).map_err(|()| refused("Method", "method"))?;
    let accepted = request
        .set_scheme(Some(&scheme))
        .and_then(|()| request.set_authority(url.authority().map(|a| a.as_str())))
        .and_then(|()| request.set_path_with_query(url.path_and_query().map(|p| p.as_str())));
    accepted.map_err(|()| Refusal::Parameter("url: not accepted\n".to_owned()))?;

    let body = query.text("body").ok().map(|text| request.body().map(|body| (body, text)));
    let body = body.transpose().map_err(|()| refused("NoBody", "send"))?;
    let future = outgoing_handler::handle(request, Some(timeouts(query)?)).map_err(|code| refused(&format!("{code:?}"), "handle"))?;
    if let Some((body, text)) = body {
        let stream = body.write().map_err(|()| refused("NoStream", "send"))?;
        // A response may come all the same.
        let _ = stream.blocking_write_and_flush(text.as_bytes());
        drop(stream);
        http::OutgoingBody::finish(body, None).map_err(|code| refused(&format!("{code:?}"), "finish"))?;
    }
    future.subscribe().block();
    let response = future.get().ok_or_else(|| refused("NotReady", "fetch"))?.map_err(|()| refused("TakenTwice", "fetch"))?;
    let response = response.map_err(|code| refused(&format!("{code:?}"), "fetch"))?;

    let body = response.consume().map_err(|()| refused("NoBody", "fetch"))?;
    let mut stream = body.stream().map_err(|()| refused("NoStream", "fetch"))?;
    let mut content = format!("{}\n", response.status()).into_bytes();
    stream.read_to_end(&mut content)?;
    Ok::<Response, Refusal>(String::from_utf8_lossy(&content).into_owned().into_response())
}

fn timeouts(query: &Query) -> Result<http::RequestOptions, Refusal> {
    let options = http::RequestOptions::new();
    let nanoseconds = |name: &str| query.number(name).ok().map(|milliseconds| milliseconds * 1_000_000);
    options
        .set_connect_timeout(nanoseconds("connect_ms"))
        .and_then(|()| options.set_first_byte_timeout(nanoseconds("first_byte_ms")))
        .and_then(|()| options.set_between_bytes_timeout(nanoseconds("between_bytes_ms")))
        .map_err(|()| refused("Timeout", "options"))?;
    Ok(options)
}
