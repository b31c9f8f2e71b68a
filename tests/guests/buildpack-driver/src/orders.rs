//! What any step can be told to do.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use dewar_guest::wasip2::filesystem::preopens;
use dewar_guest::wasip2::sockets::network::{IpAddressFamily, IpSocketAddress, Ipv4SocketAddress};
use dewar_guest::wasip2::sockets::{instance_network::instance_network, tcp_create_socket};

pub(crate) struct Order(pub(crate) String);

impl Order {
    /// The verb and what follows it.
    pub(crate) fn parts(&self) -> (&str, &str) {
        self.0.split_once(' ').unwrap_or((&self.0, ""))
    }
}

pub(crate) fn carry_out(order: &Order) -> Result<(), String> {
    let (verb, rest) = order.parts();
    match verb {
        "print" => println!("{rest}"),
        "warn" => eprintln!("{rest}"),
        "refuse" => return Err(rest.to_owned()),
        "trap" => trap(),
        "panic" => panic!("{rest}"),
        "spin" => loop {
            std::hint::spin_loop();
        },
        "sleep" => std::thread::sleep(Duration::from_millis(number(rest)?)),
        "hog" => hog(),
        "exit" => dewar_guest::exit(u8::try_from(number(rest)?).unwrap_or(u8::MAX)),
        "flood" => (0..number(rest)?).for_each(|_| println!("{}", "x".repeat(100))),
        "fill" => return fill(rest),
        "fill-inodes" => return fill_inodes(rest),
        "write" => {
            let (path, text) = rest.split_once(' ').unwrap_or((rest, ""));
            return fs::write(path, text).map_err(|e| format!("{path}: {e}"));
        }
        "symlink" => return symlink(rest),
        "env" => println!("{rest}={}", std::env::var(rest).unwrap_or_else(|e| e.to_string())),
        "count" => return count(rest),
        "list" => return list(rest),
        "connect" => println!("{}", connect(rest)?),
        _ => return Err(format!("{}: no such order", order.0)),
    }
    Ok(())
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|e| format!("{text}: {e}"))
}

fn trap() -> ! {
    #[cfg(target_arch = "wasm32")]
    core::arch::wasm32::unreachable();
    #[cfg(not(target_arch = "wasm32"))]
    std::process::abort()
}

fn hog() -> ! {
    let mut blocks = Vec::new();
    loop {
        blocks.push(vec![1_u8; 1024 * 1024]);
        std::hint::black_box(&blocks);
    }
}

fn fill(path: &str) -> Result<(), String> {
    let mut file = File::create(path).map_err(|e| format!("{path}: {e}"))?;
    let chunk = [b'x'; 64 * 1024];
    loop {
        file.write_all(&chunk).map_err(|e| format!("{path}: {e}"))?;
    }
}

fn fill_inodes(directory: &str) -> Result<(), String> {
    (0_u64..)
        .try_for_each(|n| File::create_new(Path::new(directory).join(n.to_string())).map(drop).map_err(|e| format!("{directory}: {e}")))
}

fn symlink(rest: &str) -> Result<(), String> {
    let (target, path) = rest.split_once(' ').ok_or_else(|| format!("{rest}: no TARGET PATH"))?;
    // std has no stable function for this on WASI.
    let (descriptor, name) = preopens::get_directories()
        .into_iter()
        .find_map(|(descriptor, root)| Some((descriptor, Path::new(path).strip_prefix(root).ok()?.to_str()?)))
        .ok_or_else(|| format!("{path}: in no directory"))?;
    descriptor.symlink_at(target, name).map_err(|code| format!("{path}: {}", code.message()))
}

fn count(path: &str) -> Result<(), String> {
    let runs = fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0) + 1;
    fs::write(path, runs.to_string()).map_err(|e| format!("{path}: {e}"))?;
    println!("run {runs}");
    Ok(())
}

fn list(path: &str) -> Result<(), String> {
    let entries = fs::read_dir(path).and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>, _>>());
    let mut names = entries.map_err(|e| format!("{path}: {e}"))?;
    names.sort();
    names.iter().for_each(|name| println!("{}", name.to_string_lossy()));
    Ok(())
}

/// `connected`, or the host's error code.
fn connect(to: &str) -> Result<String, String> {
    let address: std::net::SocketAddrV4 = to.parse().map_err(|e| format!("{to}: {e}"))?;
    let [a, b, c, d] = address.ip().octets();
    let remote = IpSocketAddress::Ipv4(Ipv4SocketAddress { port: address.port(), address: (a, b, c, d) });
    let attempt = || {
        let socket = tcp_create_socket::create_tcp_socket(IpAddressFamily::Ipv4)?;
        socket.start_connect(&instance_network(), remote)?;
        socket.subscribe().block();
        socket.finish_connect().map(drop)
    };
    Ok(attempt().map_or_else(|code| code.name().to_owned(), |()| "connected".to_owned()))
}
