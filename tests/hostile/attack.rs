//! What an attack is, and how one upon an instance runs.

use std::sync::Arc;
use std::time::Instant;

use dewar_sandbox::{EgressPolicy, HttpLimits, ProgramError, Quota};
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use libtest_mimic::Trial;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::evidence::Witness;
use crate::fixture::{Instance, PATIENCE, Plan, sandboxes, test};
use crate::neighbour;

/// One way to do harm, and what holds against it.
pub(crate) struct Attack {
    /// Kind and name.
    pub(crate) name: &'static str,
    /// What holds against it, in a few words for the README.
    pub(crate) held_by: &'static str,
    story: Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>,
}

/// An attack that is not upon an instance, or not in a way that [`AppAttack`] could tell.
pub(crate) fn attack<F, T>(name: &'static str, held_by: &'static str, story: F) -> Attack
where
    F: FnOnce() -> T + Send + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    Attack { name, held_by, story: Box::new(|| story().boxed()) }
}

impl Attack {
    /// The attack with the neighbour beside it.
    pub(crate) fn into_trial(self) -> Trial {
        test(self.name, || async {
            let watch = neighbour::of_all().await.watch();
            (self.story)().await;
            watch.end().await.unwrap_or_else(|harm| panic!("{harm}"));
        })
    }

    /// Without a neighbour.
    pub(crate) async fn run(self) {
        (self.story)().await;
    }
}

/// Whether a text is what a pattern says: one of its alternatives, parted by `|`, each of them the text's beginning, maybe followed
/// by `…` and what must come somewhere after it. An empty alternative is an empty text.
pub(crate) fn fits(pattern: &str, text: &str) -> bool {
    pattern.split('|').any(|alternative| {
        if alternative.is_empty() {
            return text.is_empty();
        }
        let (start, rest) = alternative.split_once('…').unwrap_or((alternative, ""));
        text.strip_prefix(start).is_some_and(|after| after.contains(rest))
    })
}

pub(crate) fn assert_fits(pattern: &str, text: &str, of: &str) {
    let shown: String = text.chars().take(2000).collect();
    assert!(fits(pattern, text), "{of}: {pattern:?} was expected, this came: {shown:?}");
}

/// An attack by an instance or upon one.
pub(crate) struct AppAttack {
    name: &'static str,
    held_by: &'static str,
    guest: Guest,
    changes: Vec<Change>,
    steps: Vec<Step>,
    judged_by: Option<fn(&mut Quota)>,
}

/// Makes an instance other than usual.
type Change = Box<dyn FnOnce(&mut Plan) + Send>;

enum Guest {
    /// One that `guest-sdk/build.sh` builds.
    Built(&'static str),
    /// A component's bytes.
    Made(fn() -> Vec<u8>),
}

enum Step {
    /// GETs at the same time, and what each must be answered.
    Ask {
        paths: Vec<String>,
        sees: &'static str,
    },
    /// Bytes on a connection of their own, and all that must come back until the server closes it.
    Wire {
        bytes: Vec<u8>,
        sees: &'static str,
    },
    Do(Box<dyn FnOnce(Arc<Instance>) -> BoxFuture<'static, ()> + Send>),
}

/// How the instance is when the attack is over.
enum End {
    /// It answers as before.
    Serves,
    /// It has ended by itself, with this description.
    Dies(&'static str),
    /// It goes on, and can be killed.
    IsKilled,
}

/// An app that does what requests say.
pub(crate) fn driver(name: &'static str, held_by: &'static str) -> AppAttack {
    guest(name, held_by, Guest::Built("tests/http-driver"))
}

/// An app that calls WASI as no library would.
pub(crate) fn raw(name: &'static str, held_by: &'static str) -> AppAttack {
    guest(name, held_by, Guest::Built("tests/raw-driver"))
}

/// A command that does what its arguments say.
pub(crate) fn command(name: &'static str, held_by: &'static str, orders: &'static [&'static str]) -> AppAttack {
    guest(name, held_by, Guest::Built("tests/command-driver")).plan(|plan| {
        plan.arguments.extend(orders.iter().map(|order| (*order).to_owned()));
    })
}

/// Another one that `guest-sdk/build.sh` builds.
pub(crate) fn built(name: &'static str, held_by: &'static str, path: &'static str) -> AppAttack {
    guest(name, held_by, Guest::Built(path))
}

/// A component made here.
pub(crate) fn made(name: &'static str, held_by: &'static str, component: fn() -> Vec<u8>) -> AppAttack {
    guest(name, held_by, Guest::Made(component))
}

fn guest(name: &'static str, held_by: &'static str, guest: Guest) -> AppAttack {
    AppAttack { name, held_by, guest, changes: Vec::new(), steps: Vec::new(), judged_by: None }
}

impl AppAttack {
    pub(crate) fn plan(mut self, change: impl FnOnce(&mut Plan) + Send + 'static) -> Self {
        self.changes.push(Box::new(change));
        self
    }

    pub(crate) fn quota(self, change: fn(&mut Quota)) -> Self {
        self.plan(move |plan| change(&mut plan.quota))
    }

    pub(crate) fn http(self, change: fn(&mut HttpLimits)) -> Self {
        self.plan(move |plan| change(&mut plan.http))
    }

    pub(crate) fn env(self, name: &'static str, value: &'static str) -> Self {
        self.plan(move |plan| plan.environment.push((name.into(), value.into())))
    }

    pub(crate) fn egress(self, policy: EgressPolicy) -> Self {
        self.plan(move |plan| plan.egress = policy)
    }

    /// What the evidence is held against, in place of the quota that the instance has: for the tests of the tests.
    pub(crate) fn judged_by(mut self, change: fn(&mut Quota)) -> Self {
        self.judged_by = Some(change);
        self
    }

    /// One request, and what its answer (`STATUS BODY`, or `none` and why) must be.
    pub(crate) fn asks(self, path: &str, sees: &'static str) -> Self {
        self.asks_at_once(1, path, sees)
    }

    pub(crate) fn asks_at_once(mut self, times: usize, path: &str, sees: &'static str) -> Self {
        self.steps.push(Step::Ask { paths: vec![path.to_owned(); times], sees });
        self
    }

    /// Several requests, one after the other, all with the same outcome.
    pub(crate) fn asks_each(mut self, paths: &[&str], sees: &'static str) -> Self {
        self.steps.extend(paths.iter().map(|path| Step::Ask { paths: vec![(*path).to_owned()], sees }));
        self
    }

    pub(crate) fn wires(mut self, bytes: impl Into<Vec<u8>>, sees: &'static str) -> Self {
        self.steps.push(Step::Wire { bytes: bytes.into(), sees });
        self
    }

    pub(crate) fn does<F, T>(mut self, step: F) -> Self
    where
        F: FnOnce(Arc<Instance>) -> T + Send + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        self.steps.push(Step::Do(Box::new(|app| step(app).boxed())));
        self
    }

    /// After all of it the app answers as before.
    pub(crate) fn serves_on(self) -> Attack {
        self.until(End::Serves)
    }

    /// It ends the instance, with this description.
    pub(crate) fn dies(self, description: &'static str) -> Attack {
        self.until(End::Dies(description))
    }

    /// It never ends by itself, and can be killed.
    pub(crate) fn until_killed(self) -> Attack {
        self.until(End::IsKilled)
    }

    /// There is no instance of it, for this reason.
    pub(crate) fn does_not_start(self, description: &'static str) -> Attack {
        attack(self.name, self.held_by, move || async move {
            let began = Instant::now();
            let (exit, lines) = plan(self.guest, self.changes).await.try_start().await.err().expect("it starts");
            assert_fits(description, &exit.description, "the end");
            crate::evidence::assert_log_within_rate(&lines, began.elapsed());
        })
    }

    /// There is no instance of it, or not even a program.
    pub(crate) fn never_runs(self, words: &'static str) -> Attack {
        attack(self.name, self.held_by, move || async move {
            let outcome = match try_plan(self.guest, self.changes).await {
                Err(error) => error.to_string(),
                Ok(plan) => plan.try_start().await.err().expect("it starts").0.description,
            };
            assert_fits(words, &outcome, "the end");
        })
    }

    fn until(self, end: End) -> Attack {
        attack(self.name, self.held_by, move || async move {
            let plan = plan(self.guest, self.changes).await;
            let mut quota = plan.quota;
            if let Some(change) = self.judged_by {
                change(&mut quota);
            }
            let app = Arc::new(plan.start().await);
            let witness = Witness::of(app.clone(), quota);
            for step in self.steps {
                carry_out(&app, step).await;
            }
            match end {
                End::Serves => assert_eq!(app.get("/").await.status, 200, "it serves as before"),
                End::Dies(description) => assert_fits(description, &app.exit().await.description, "the end"),
                End::IsKilled => {
                    app.sandbox.kill();
                    assert_fits("killed", &app.exit().await.description, "the end");
                }
            }
            app.sandbox.kill();
            app.exit().await;
            let objections = witness.objections(app).await;
            assert!(objections.is_empty(), "{}", objections.join("\n"));
        })
    }
}

async fn plan(guest: Guest, changes: Vec<Change>) -> Plan {
    try_plan(guest, changes).await.unwrap()
}

async fn try_plan(guest: Guest, changes: Vec<Change>) -> Result<Plan, ProgramError> {
    let mut plan = match guest {
        Guest::Built(name) => Plan::of(name).await,
        Guest::Made(component) => {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), component()).unwrap();
            // The neighbour's program is there already; all but the program is as usual.
            let mut plan = Plan::of("examples/hello").await;
            plan.program = sandboxes().program(file.path()).await?;
            plan
        }
    };
    for change in changes {
        change(&mut plan);
    }
    Ok(plan)
}

async fn carry_out(app: &Arc<Instance>, step: Step) {
    match step {
        Step::Ask { paths, sees } => {
            for (path, seen) in paths.iter().zip(join_all(paths.iter().map(|path| ask(app, path))).await) {
                assert_fits(sees, &seen, path);
            }
        }
        Step::Wire { bytes, sees } => assert_fits(sees, &wire(app, &bytes).await, &String::from_utf8_lossy(&bytes[..bytes.len().min(200)])),
        Step::Do(step) => step(app.clone()).await,
    }
}

async fn ask(app: &Instance, path: &str) -> String {
    match tokio::time::timeout(PATIENCE, app.try_send("GET", path, bytes::Bytes::new())).await {
        Ok(Ok(answer)) => format!("{} {}", answer.status, answer.text()),
        Ok(Err(error)) => format!("none: {error}"),
        Err(_) => format!("still waiting after {PATIENCE:?}"),
    }
}

/// Sends bytes, gives all that comes back until the server closes. The client's side stays open.
pub(crate) async fn wire(app: &Instance, bytes: &[u8]) -> String {
    let stream = TcpStream::connect(app.address).await.unwrap();
    let (mut from, mut to) = stream.into_split();
    let mut answer = Vec::new();
    let sending = async {
        // A server that has refused need not read on.
        let _ = to.write_all(bytes).await;
    };
    let reading = async {
        // A connection that is reset has ended too.
        let _ = from.read_to_end(&mut answer).await;
    };
    let done = tokio::time::timeout(PATIENCE, futures::future::join(sending, reading)).await;
    assert!(done.is_ok(), "the server neither answered nor closed: {}", String::from_utf8_lossy(&answer));
    String::from_utf8_lossy(&answer).into_owned()
}
