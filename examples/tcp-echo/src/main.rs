//! Sends back what it gets over TCP.

use std::error::Error;

use wstd::io;
use wstd::iter::AsyncIterator;
use wstd::net::TcpListener;
use wstd::runtime::spawn;

/// More connections wait in the system's queue until one of these is done.
const CONNECTIONS_MAX: usize = 256;

#[wstd::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let port = std::env::var("PORT").map_err(|_| "PORT says where to listen, and is not set")?;
    let listener = TcpListener::bind(&format!("0.0.0.0:{port}")).await?;
    println!("listening on port {port}");

    let mut connections = Vec::new();
    let mut incoming = listener.incoming();
    while let Some(stream) = incoming.next().await {
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                eprintln!("a connection was lost before it began: {error}");
                continue;
            }
        };
        connections.retain(|connection: &wstd::runtime::Task<()>| !connection.is_finished());
        if connections.len() == CONNECTIONS_MAX {
            connections.remove(0).await;
        }
        connections.push(spawn(async move {
            if let Err(error) = io::copy(&stream, &stream).await {
                eprintln!("a connection was lost: {error}");
            }
        }));
    }
    Ok(())
}
