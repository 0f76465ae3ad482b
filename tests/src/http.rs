//! Requests from the machine to the nodes, each on a connection of its own; and a file that nodes fetch from it.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::wait::patient;

use crate::Lab;

const TIMEOUT: Duration = Duration::from_secs(2);

/// The body of `GET path`. Anything but a complete answer with status 200 is an error.
pub fn get(address: SocketAddr, path: &str) -> Result<String> {
    let timeout = patient(TIMEOUT);
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| Error::new(ErrorKind::UnexpectedEof, format!("half an answer: {answer:?}")))?;
    if head.split(' ').nth(1) != Some("200") {
        return Err(Error::other(format!("not 200: {head:?}")));
    }
    Ok(body.to_owned())
}

/// Status and body of `GET path` for a host, whatever the status is.
pub fn ask(address: SocketAddr, host: &str, path: &str) -> Result<(u16, String)> {
    let timeout = patient(TIMEOUT);
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let half = || Error::new(ErrorKind::UnexpectedEof, format!("half an answer: {answer:?}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(half)?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(half)?;
    Ok((status, body.to_owned()))
}

/// What the demo image's page says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Host name of the replica.
    pub replica: String,
    /// The client's address as the replica saw it.
    pub client: String,
}

/// Asks the demo image who answers.
pub fn hello(address: SocketAddr) -> Result<Hello> {
    let body = get(address, "/json")?;
    let value: serde_json::Value = serde_json::from_str(&body).map_err(Error::other)?;
    let field = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
    Ok(Hello { replica: field("replica"), client: field("client") })
}

/// Asks so many times and counts who answered. The first request that fails ends it.
pub fn tally(address: SocketAddr, requests: usize) -> Result<BTreeMap<String, usize>> {
    let mut tally = BTreeMap::new();
    for _ in 0..requests {
        *tally.entry(hello(address)?.replica).or_default() += 1;
    }
    Ok(tally)
}

/// Serves a file to so many requests, one after the other: whole at any path, half of it at `/half`, and nothing at
/// `/missing`. Returns where.
pub fn serve(address: IpAddr, file: Vec<u8>, requests: usize) -> SocketAddr {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let own = listener.local_addr().unwrap();
    // Ends with the last request, or with the test.
    std::thread::spawn(move || {
        for stream in listener.incoming().take(requests) {
            let Ok(mut stream) = stream else { continue };
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
                head.push(byte[0]);
            }
            let head = String::from_utf8_lossy(&head);
            let (status, sent) = match head.split(' ').nth(1) {
                Some("/missing") => ("404 Not Found", &file[..0]),
                Some("/half") => ("200 OK", &file[..file.len() / 2]),
                _ => ("200 OK", &file[..]),
            };
            let length = if status.starts_with("404") { 0 } else { file.len() };
            // A client that hangs up is no failure of the test.
            let _ =
                write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
            let _ = stream.write_all(sent);
        }
    });
    own
}

/// The published port of every node leads to every replica, which sees the client as who it is.
///
/// # Errors
///
/// Says which node answered what.
pub fn all_are_reached(lab: &Lab, port: u16, replicas: usize) -> std::result::Result<(), String> {
    for node in lab.nodes() {
        let mut found = BTreeSet::new();
        for _ in 0..2 * replicas {
            let hello = hello(node.port(port)).map_err(|e| format!("n{}: {e}", node.number))?;
            if hello.client != node.machine().to_string() {
                return Err(format!("n{}: {hello:?}", node.number));
            }
            found.insert(hello.replica);
        }
        if found.len() != replicas {
            return Err(format!("n{}: {found:?}", node.number));
        }
    }
    Ok(())
}
