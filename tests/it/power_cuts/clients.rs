//! Several clients, of which one makes one system call at a time.

use std::collections::HashMap;
use std::time::SystemTime;

use nix::libc;
use nix::unistd::Pid;

use super::session::{Action, Done, Mix, Program, Step};
use super::{CALLS_PER_CLIENT, CLIENTS};
use crate::linearize::history::{Claim, Op, Outcome};
use crate::power_loss::disk::{Arrived, Disk, Image, Interner, Node, Path, Tree};
use crate::power_loss::normalize::shifted;
use crate::power_loss::recorder::{Call, Event, Recorder};
use crate::power_loss::recover::describe;
use crate::support::Moment;
use crate::support::children::Child;
use crate::support::dice::Dice;
use crate::support::trace::{At, Traced};

/// A call of a client.
pub(crate) struct Observed {
    pub(crate) process: u32,
    pub(crate) key: usize,
    pub(crate) number: u64,
    pub(crate) op: Op,
    pub(crate) outcome: Option<Outcome>,
    pub(crate) start: Moment,
    pub(crate) end: Moment,
}

/// The power fails.
pub(crate) struct Cut {
    pub(crate) moment: Moment,
    /// The number of events on the disk until then.
    events: usize,
    /// Some of the trees that the disk may hold.
    pub(crate) trees: Vec<Vec<(Path, Image)>>,
}

/// The calls of the clients, and the states of the disk.
pub(crate) struct Recorded {
    pub(crate) begin: SystemTime,
    pub(crate) processes: Vec<u32>,
    pub(crate) calls: Vec<Observed>,
    pub(crate) cuts: Vec<Cut>,
    pub(crate) interner: Interner,
    log: Vec<Event>,
}

impl Recorded {
    /// Everything that is needed to understand a failure.
    pub(crate) fn describe(&self, cut: &Cut, tree: &Tree) -> String {
        describe(tree, &self.interner, &self.log[..cut.events])
    }
}

struct Client {
    traced: Traced,
    thread: Pid,
    process: u32,
    steps: Vec<Step>,
    /// At the entry of which call it is stopped.
    at: At,
    /// The moment at which its present call has begun.
    start: Option<Moment>,
    /// Its last call, until its outcome is known.
    ended: Option<(Step, Moment, Moment)>,
    position: usize,
}

impl Client {
    fn is_done(&self) -> bool {
        self.position == self.steps.len() && self.ended.is_none()
    }

    fn next(&self) -> Option<Step> {
        self.steps.get(self.position).copied()
    }
}

struct Players<'a> {
    recorder: Recorder<'a>,
    clients: Vec<Client>,
    /// The latches, and the clients that are in them.
    latches: HashMap<Node, usize>,
    moment: Moment,
    calls: Vec<Observed>,
}

/// Records a random history. `None`: `ptrace` is forbidden, and the tests may be skipped.
pub(crate) fn record(dice: &mut Dice) -> Option<Recorded> {
    let dir = crate::support::in_memory();
    let begin = SystemTime::now();
    let mix = Mix::random(dice);
    let programs: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let number = |position| (client * 50 + position) as u64;
            let mut steps = vec![Step::random(number(0), mix, dice)];
            for position in 1..CALLS_PER_CLIENT {
                steps.push(steps[position - 1].next(number(position), mix, dice));
            }
            let client = u32::try_from(client).unwrap();
            Program { store: dir.path().join("records"), client, begin, steps }
        })
        .collect();
    let children: Vec<_> = programs.iter().map(|program| Child::start("power-cuts", program)).collect();
    let interner = Interner::default();
    let (mut cuts, calls, processes, log);
    {
        let recorder = Recorder::of_history(dir.path().to_owned(), &children, &interner);
        let mut all =
            Players { recorder, clients: Vec::new(), latches: HashMap::new(), moment: 0, calls: Vec::new() };
        // The first one creates the store.
        for (program, child) in programs.into_iter().zip(children) {
            all.start(child, program.steps)?;
        }
        all.recorder.disk().settle();
        cuts = Vec::new();
        all.run(dice, &mut cuts);
        processes = all.clients.iter().map(|client| client.process).collect();
        (calls, log) = (all.calls, all.recorder.log().to_vec());
    }
    Some(Recorded { begin, processes, calls, cuts, interner, log })
}

impl Players<'_> {
    /// Starts a client, and lets it open the store.
    fn start(&mut self, child: Child, steps: Vec<Step>) -> Option<()> {
        let process = child.pid().as_raw_pid().unsigned_abs();
        let (mut traced, thread) = Traced::attach(child)?;
        let thread = Pid::from_raw(thread.parse().unwrap());
        let at = traced.step();
        self.clients.push(Client {
            traced,
            thread,
            process,
            steps,
            at,
            start: None,
            ended: None,
            position: 0,
        });
        let client = self.clients.len() - 1;
        while self.clients[client].at == At::Call {
            self.advance(client);
        }
        Some(())
    }

    /// Lets the clients make their calls, and fails the power.
    fn run(&mut self, dice: &mut Dice, cuts: &mut Vec<Cut>) {
        // Long runs of one client find other orders than short ones.
        let run_length = [2, 6, 20][dice.index(3)];
        let mut last = None;
        let mut events = self.recorder.log().len();
        while let Some(client) = self.choose(last, run_length, dice) {
            last = Some(client);
            let has_returned = self.advance(client);
            let now = self.recorder.log().len();
            if has_returned || now > events && dice.once_in(6) {
                events = now;
                let disk = self.recorder.disk();
                let trees = trees(disk, dice);
                cuts.push(Cut { moment: self.moment, events, trees });
            }
        }
    }

    /// The client that makes the next system call. `None`: all are done.
    fn choose(&self, last: Option<usize>, run_length: u64, dice: &mut Dice) -> Option<usize> {
        let mut ready: Vec<_> = (0..self.clients.len()).filter(|&client| self.is_ready(client)).collect();
        if ready.is_empty() {
            assert!(self.clients.iter().all(Client::is_done), "every client waits for another one");
            return None;
        }
        // Others often see a change before it is synced.
        let prompt: Vec<_> = ready.iter().copied().filter(|&client| !self.is_about_to_sync(client)).collect();
        if !prompt.is_empty() && !dice.once_in(16) {
            ready = prompt;
        }
        let goes_on = last.filter(|last| ready.contains(last) && !dice.once_in(run_length));
        goes_on.or_else(|| Some(ready[dice.index(ready.len())]))
    }

    fn is_ready(&self, client: usize) -> bool {
        let it = &self.clients[client];
        let is_alone = |it: &Client| it.next().is_some_and(|step| step.action == Action::Checkpoint);
        let mut others =
            self.clients.iter().enumerate().filter(|(other, _)| *other != client).map(|(_, it)| it);
        // A checkpoint that finds another client in a change waits for it.
        let must_wait = if it.start.is_none() && is_alone(it) {
            others.any(|other| other.start.is_some())
        } else {
            others.any(|other| other.start.is_some() && is_alone(other))
        };
        !it.is_done() && !must_wait && !self.is_blocked(client)
    }

    fn is_about_to_sync(&self, client: usize) -> bool {
        let it = &self.clients[client];
        let syncs = [libc::SYS_fsync, libc::SYS_fdatasync];
        it.at == At::Call && syncs.contains(&Call::of(it.thread).number)
    }

    /// Whether a client is about to wait for a latch in which another one is.
    fn is_blocked(&self, client: usize) -> bool {
        let it = &self.clients[client];
        if it.at == At::End {
            return false;
        }
        let call = Call::of(it.thread);
        let waits = call.number == libc::SYS_flock && call.arguments[1] & (UNLOCK | NO_WAIT) == 0;
        let latch = self.recorder.node_of(client, call.arguments[0]).filter(|_| waits);
        latch.and_then(|latch| self.latches.get(&latch)).is_some_and(|inside| *inside != client)
    }

    /// Lets a client make the system call at which it is stopped, and go on to the next one. Returns whether its call has
    /// returned.
    fn advance(&mut self, client: usize) -> bool {
        self.moment += 1;
        let at = self.clients[client].at;
        self.clients[client].traced.step();
        let mut has_returned = false;
        if at == At::End {
            has_returned = self.pass_mark(client);
        } else {
            let call = Call::of(self.clients[client].thread);
            let latch = self.recorder.node_of(client, call.arguments[0]);
            self.recorder.record_call_of(client, &call);
            match call.number {
                libc::SYS_flock if call.result == 0 => {
                    if let Some(latch) = latch {
                        self.locked(client, latch, call.arguments[1]);
                    }
                }
                libc::SYS_write if call.arguments[0] == 1 => self.receive(client, &call),
                _ => {}
            }
        }
        if !self.clients[client].is_done() {
            self.clients[client].at = self.clients[client].traced.step();
        }
        has_returned
    }

    fn locked(&mut self, client: usize, latch: Node, how: u64) {
        if how & UNLOCK == 0 {
            self.latches.insert(latch, client);
        } else if self.latches.get(&latch) == Some(&client) {
            self.latches.remove(&latch);
        }
    }

    /// A call of the client begins, or has returned.
    fn pass_mark(&mut self, client: usize) -> bool {
        let it = &mut self.clients[client];
        let Some(step) = it.next() else { return false };
        let Some(start) = it.start.take() else {
            it.start = Some(self.moment);
            return false;
        };
        it.ended = Some((step, start, self.moment));
        it.position += 1;
        true
    }

    /// The client may have told the outcome of its last call.
    fn receive(&mut self, client: usize, write: &Call) {
        let text = self.recorder.written(client, write);
        let Some((_, text)) = text.split_once('@') else { return };
        let done: Option<Done> = serde_json::from_str(text).unwrap();
        let it = &mut self.clients[client];
        let (step, start, end) = it.ended.take().expect("a call that has returned");
        let Some((op, outcome)) = done else { return };
        let (process, Step { number, key, .. }) = (it.process, step);
        let outcome = Some(shifted_outcome(outcome));
        self.calls.push(Observed { process, key, number, op: shifted_op(op), outcome, start, end });
    }
}

const UNLOCK: u64 = libc::LOCK_UN as u64;
const NO_WAIT: u64 = libc::LOCK_NB as u64;

/// Two trees that the disk may hold now.
fn trees(disk: &Disk<'_>, dice: &mut Dice) -> Vec<Vec<(Path, Image)>> {
    use Arrived::{Data, Everything, Names, Nothing, Something};
    let others = [Everything, Names, Data, Something, Something, Something];
    let other = others[dice.index(others.len())];
    let mut trees = vec![disk.tree(Nothing, dice), disk.tree(other, dice)];
    trees.dedup();
    trees
}

/// The numbers that a client saw are shifted in its files.
fn shifted_op(op: Op) -> Op {
    let claim = |claim| match claim {
        Claim::Token(token) => Claim::Token(shifted(token)),
        Claim::Holder(_) => claim,
    };
    match op {
        Op::Read(by) => Op::Read(claim(by)),
        Op::Write(by, value) => Op::Write(claim(by), value),
        Op::Swap(by, expected, value) => Op::Swap(claim(by), expected, value),
        Op::Remove(by) => Op::Remove(claim(by)),
        Op::Renew(by, lease) => Op::Renew(claim(by), lease),
        Op::Release(by) => Op::Release(claim(by)),
        Op::Exists | Op::Acquire(..) | Op::Share(..) | Op::Info | Op::Holders | Op::WaitFree | Op::Break => {
            op
        }
    }
}

fn shifted_outcome(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Record(value, version) => Outcome::Record(value, shifted(version)),
        Outcome::Acquired { token, reentrant } => Outcome::Acquired { token: shifted(token), reentrant },
        Outcome::Info(Some((holder, token, lease))) => Outcome::Info(Some((holder, shifted(token), lease))),
        Outcome::Holders(holders) => {
            Outcome::Holders(holders.into_iter().map(|(holder, token)| (holder, shifted(token))).collect())
        }
        outcome => outcome,
    }
}
