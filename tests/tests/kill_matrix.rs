//! The kill matrix: while clients ask, server, dispatcher, Redis and the receiver of the events are killed at random
//! moments, one or two at a time, and started again. In the end the sinks have every exchange that a client saw end,
//! and nothing else than what happened: the file each record once, the receiver at most one batch twice for each kill.
//!
//! `KILL_MATRIX_SEED` repeats the choices of a run (who, when, for how long; what the processes are doing just then, no
//! seed decides). `TORTURE_KILL_ROUNDS` is the number of rounds of each arrangement.

mod common;

#[path = "kill_matrix/clients.rs"]
mod clients;
#[path = "kill_matrix/ledger.rs"]
mod ledger;
#[path = "kill_matrix/process.rs"]
mod process;
#[path = "kill_matrix/receiver.rs"]
mod receiver;
#[path = "kill_matrix/redis.rs"]
mod redis;
#[path = "kill_matrix/stack.rs"]
mod stack;

use std::time::{Duration, Instant};

use clients::{Load, Tokens};
use ledger::{Ledger, Line};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use stack::{Stack, Victim};
use tokio::time::sleep;

/// In an ordinary run. Twice for each victim of the largest arrangement.
const ROUNDS: usize = 8;
/// How long events may be on their way after the last round.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);
/// Between two looks at whether they have come.
const LOOK: Duration = Duration::from_millis(200);

fn number<T: std::str::FromStr>(variable: &str) -> Option<T> {
    let told = std::env::var(variable).ok()?;
    Some(told.parse().unwrap_or_else(|_| panic!("{variable}: found {told:?}, expected a number")))
}

/// One round: who is killed, and when.
#[derive(Debug)]
struct Round {
    before: Duration,
    victims: Vec<Victim>,
    down: Duration,
    after: Duration,
}

impl Round {
    /// Draws one. `turns` are the victims whose turn is still to come: nobody is spared for long.
    fn draw(dice: &mut StdRng, turns: &mut Vec<Victim>, all: &[Victim]) -> Self {
        if turns.is_empty() {
            turns.extend(all);
            turns.shuffle(dice);
        }
        let first = turns.pop().unwrap();
        let others: Vec<Victim> = all.iter().copied().filter(|victim| *victim != first).collect();
        let second = if dice.random_ratio(1, 4) { others.choose(dice).copied() } else { None };
        let mut ms = |range: std::ops::Range<u64>| Duration::from_millis(dice.random_range(range));
        let (before, down, after) = (ms(20..250), ms(0..250), ms(50..250));
        Self { before, victims: [first].into_iter().chain(second).collect(), down, after }
    }
}

async fn play(arrangement: &str, mut stack: Stack) {
    let seed: u64 = number("KILL_MATRIX_SEED").unwrap_or_else(rand::random);
    println!("{arrangement}: KILL_MATRIX_SEED={seed} repeats this");
    let mut dice = StdRng::seed_from_u64(seed);
    let tokens = Tokens::of(&stack.world).await;
    let victims = stack.victims();
    let (mut ledger, mut turns, mut kills) = (Ledger::default(), Vec::new(), 0);
    let rounds: usize = number("TORTURE_KILL_ROUNDS").unwrap_or(ROUNDS);
    for number in 0..rounds {
        let round = Round::draw(&mut dice, &mut turns, &victims);
        println!("{arrangement}, round {number}: {round:?}");
        let load = Load::start(stack.world.product.data_addr(), &tokens, number);
        sleep(round.before).await;
        for victim in &round.victims {
            stack.kill(*victim).await;
            kills += 1;
        }
        sleep(round.down).await;
        ledger.note_provider(&stack.world.mock.requests());
        for victim in &round.victims {
            stack.revive(*victim).await;
        }
        sleep(round.after).await;
        let attempts = load.end().await;
        if !round.victims.contains(&Victim::Server) {
            let cut: Vec<_> = attempts.iter().filter(|attempt| attempt.seen.is_none()).collect();
            assert!(cut.is_empty(), "what is behind the journal has cut requests: {cut:?}");
        }
        assert!(attempts.iter().any(|attempt| attempt.seen.is_some()), "there was no load");
        ledger.note_clients(attempts);
        ledger.note_provider(&stack.world.mock.requests());
    }

    // What is still missing when the time is over, the check says.
    let deadline = Instant::now() + SETTLED_WITHIN;
    while Instant::now() < deadline && !ledger.is_settled(&Line::all_of(&stack.file()), &stack.receiver.kept()) {
        sleep(LOOK).await;
    }
    stack.end().await;
    ledger.note_provider(&stack.world.mock.requests());
    let lines = Line::all_of(&stack.file());
    let books = ledger.check(&lines, &stack.receiver.kept(), stack.most_repeats(kills));
    println!("{arrangement}: {rounds} rounds, {kills} kills: {books:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sinks_inside_the_server_lose_nothing_when_it_or_their_receiver_is_killed() {
    play("inside", Stack::inside().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dispatcher_beside_the_server_loses_nothing_when_either_is_killed() {
    play("outside", Stack::outside().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_go_over_redis_are_not_lost_when_anybody_on_the_way_is_killed() {
    play("over Redis", Stack::over_redis().await).await;
}
