//! Documents that make a worker misbehave, for tests of its walls. Built only with the feature `laboratory`.
//!
//! **Invariant:** this file is no part of a release.

use std::{fs, hint, io::Write, net, thread, time::Duration};

use super::{ParseError, Parsed, Section};

/// What a document must begin with to be obeyed; the rest is the command.
const MARK: &[u8] = b"bulkhead laboratory: ";

/// Does what the document commands, if it is such a one.
pub(super) fn obey(document: &[u8]) -> Option<Result<Parsed, ParseError>> {
    let command = document.strip_prefix(MARK)?;
    match command {
        b"spin" => loop {
            hint::spin_loop();
        },
        b"sleep" => thread::sleep(Duration::from_hours(1)),
        b"grow" => {
            let mut hoard: Vec<Vec<u8>> = Vec::new();
            loop {
                hoard.push(vec![1; 1 << 20]);
                hint::black_box(&hoard);
            }
        }
        b"abort" => std::process::abort(),
        b"panic" => panic!("a panic that was ordered"),
        b"print" => {
            let _ = std::io::stdout().write_all(b"{\"outcome\": \"forged\"}");
            let _ = std::io::stdout().flush();
        }
        _ => {}
    }
    Some(Ok(Parsed {
        sections: vec![Section { text: surroundings(), ..Section::default() }],
        ..Parsed::default()
    }))
}

/// What a worker can see and do, one fact a line.
fn surroundings() -> String {
    let variables = std::env::vars_os().count();
    let descriptors = (0..1024).filter(|number| is_open(*number)).count();
    let file = fs::File::open("/etc/passwd").is_ok();
    let socket = net::UdpSocket::bind("127.0.0.1:0").is_ok();
    let thread = thread::Builder::new().spawn(|| {}).is_ok();
    let user = nix::unistd::Uid::effective();
    format!(
        "variables {variables}\ndescriptors {descriptors}\nfile {file}\nsocket {socket}\nthread {thread}\nuser {user}"
    )
}

/// Whether a descriptor is open. `/proc` is closed by the walls, but a socket's call tells "no such descriptor" from
/// "not a socket".
fn is_open(number: i32) -> bool {
    nix::sys::socket::getsockname::<nix::sys::socket::SockaddrStorage>(number)
        != Err(nix::errno::Errno::EBADF)
}
