//! One running program.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use dewar_protocol::Bytes;

use crate::{EgressPolicy, OutputSink, Program, World};

/// What one instance may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Linear memories and tables of all its stores together.
    pub memory: Bytes,
    /// Bytes in `app_dir` and `tmp_dir` together; what is there at the start counts.
    pub disk: Bytes,
    /// Files and directories in both together.
    pub inodes: u64,
    /// Descriptors, streams, sockets and other handles it may hold at a time.
    pub open_files: u32,
}

/// Limits on what reaches an http instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpLimits {
    /// Requests in work at a time.
    pub concurrent_requests: usize,
    /// Requests waiting for one of them; one more is answered with 503.
    pub queued_requests: usize,
    /// Open connections; one more waits to be accepted.
    pub connections: usize,
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// Fields in a request's head.
    pub headers: usize,
    /// Bytes of a request's body.
    pub request_body: Bytes,
    /// Bytes of a response's body.
    pub response_body: Bytes,
    /// For the whole head to arrive; also how long a connection may be idle.
    pub head_timeout: Duration,
    /// From the head's arrival to the response's head.
    pub response_timeout: Duration,
    /// From the head's arrival to the last byte of the response.
    pub total_timeout: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            concurrent_requests: 128,
            queued_requests: 256,
            connections: 1024,
            head_bytes: 64 << 10,
            headers: 100,
            request_body: Bytes(1 << 30),
            response_body: Bytes(1 << 30),
            head_timeout: Duration::from_secs(60),
            response_timeout: Duration::from_secs(60),
            total_timeout: Duration::from_secs(900),
        }
    }
}

/// All that is needed to run a program.
pub struct InstanceSpec {
    /// What to run.
    pub program: Program,
    /// Which of its worlds; `None`: the first.
    pub world: Option<World>,
    /// Argument vector, the program's name first.
    pub arguments: Vec<String>,
    /// Environment.
    pub environment: Vec<(String, String)>,
    /// Seen as `/app`, writable.
    pub app_dir: PathBuf,
    /// Seen as `/tmp`, writable.
    pub tmp_dir: PathBuf,
    /// What it may use.
    pub quota: Quota,
    /// http: where to serve. command: dropped right before the guest may bind the same address.
    pub listener: Option<TcpListener>,
    /// The instance's address.
    pub address: SocketAddr,
    /// Whom it may talk to.
    pub egress: EgressPolicy,
    /// Limits on what reaches it.
    pub http: HttpLimits,
    /// Where its lines go.
    pub output: OutputSink,
}

/// How an instance ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Exit status of the guest; −1 when there is none.
    pub status: i32,
    /// For the app's developer: one line, maybe followed by a backtrace.
    pub description: String,
}

/// What an instance uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SandboxUsage {
    /// CPU time since its start.
    pub cpu: Duration,
    /// Memory now.
    pub memory: Bytes,
    /// Disk now.
    pub disk: Bytes,
}

/// A running instance. It ends when the last clone is dropped. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sandbox {}

impl Sandbox {
    /// What it uses, without touching the disk.
    #[must_use]
    pub fn usage(&self) -> SandboxUsage {
        todo!()
    }

    /// Asks it to end: an http instance finishes the requests in flight, a command is interrupted.
    pub fn stop(&self) {
        todo!()
    }

    /// Ends it now.
    pub fn kill(&self) {
        todo!()
    }

    /// Waits for its end. Any number of callers, at any time.
    pub async fn exited(&self) -> Exit {
        todo!()
    }
}
