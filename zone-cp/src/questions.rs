//! Answers to what global asks: what a sidecar of this zone is told, which only the zone knows.
//!
//! One stream to global, opened again when it ends; nothing goes over it while nobody asks. What is asked is answered as
//! the zone's own API answers it.

use crate::inspect::Inspector;
use crate::link::Link;
use anyhow::Context;
use http::StatusCode;
use meridian_api::{Problem, ProxyConfigRequest};
use meridian_core::Key;
use meridian_core::kinds::dataplane::Dataplane;
use meridian_proto::questions::answer::Outcome;
use meridian_proto::questions::question::Ask;
use meridian_proto::questions::zone_questions_client::ZoneQuestionsClient;
use meridian_proto::questions::{self as wire, AT_ONCE, Answer, Hello, MAX_ANSWER, Question};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

/// Before the stream is opened again, doubled...
const RETRY_FIRST: Duration = Duration::from_millis(200);
/// ...up to this: global may be away, or too old to ask.
const RETRY_LAST: Duration = Duration::from_secs(30);
/// A stream that was up for so long begins the back-off anew.
const STEADY: Duration = Duration::from_secs(30);
/// Left for what is beside the body in a message.
const ENVELOPE: usize = 1_024;

/// Runs until `shutdown`.
pub(crate) async fn run(link: Link, inspector: Inspector, shutdown: CancellationToken) {
    let mut retry = RETRY_FIRST;
    while link.until_enrolled(&shutdown).await {
        let began = tokio::time::Instant::now();
        match shutdown.run_until_cancelled(stream(&link, &inspector)).await {
            None => return,
            Some(Ok(())) => {}
            Some(Err(error)) => tracing::debug!(error = format!("{error:#}"), "global can ask nothing now"),
        }
        retry = if began.elapsed() > STEADY { RETRY_FIRST } else { (retry * 2).min(RETRY_LAST) };
        let wait = retry.mul_f64(rand::random_range(0.5..1.0));
        if shutdown.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
            return;
        }
    }
}

/// One stream, to its end. Answers that are being worked out end with it.
async fn stream(link: &Link, inspector: &Inspector) -> anyhow::Result<()> {
    let (sender, receiver) = mpsc::channel(AT_ONCE);
    let hello = Hello { instance: link.instance().to_owned() };
    sender.send(Answer { id: 0, outcome: Some(Outcome::Hello(hello)) }).await?;
    let service = link.service().await?;
    let mut client = ZoneQuestionsClient::new(service).max_encoding_message_size(MAX_ANSWER);
    let answers = ReceiverStream::new(receiver);
    let mut questions = client.answer(answers).await.context("it takes no answers")?.into_inner();
    let mut working = JoinSet::new();
    while let Some(question) = questions.message().await.context("the stream is down")? {
        while working.try_join_next().is_some() {}
        let Question { id, ask } = question;
        if working.len() >= AT_ONCE {
            let (status, detail) =
                (StatusCode::SERVICE_UNAVAILABLE, "It is asked too much at once; try again");
            let busy = Problem::new(status, "Service unavailable", detail);
            sender.send(Answer { id, outcome: Some(Outcome::Problem(told(busy))) }).await?;
            continue;
        }
        let (inspector, sender) = (inspector.clone(), sender.clone());
        working.spawn(async move {
            let outcome = Some(outcome(&inspector, ask).await);
            // Whoever asked may be gone.
            let _ = sender.send(Answer { id, outcome }).await;
        });
    }
    Ok(())
}

async fn outcome(inspector: &Inspector, ask: Option<Ask>) -> Outcome {
    let Some(Ask::ProxyConfig(wire::ProxyConfig { mesh, name, shadow, diff })) = ask else {
        let problem = Problem::not_allowed("The zone is too old for this question");
        return Outcome::Problem(told(problem));
    };
    let key = Key::new(Dataplane::KIND, mesh, inspector.zone(), name);
    let body = match inspector.config(&key, ProxyConfigRequest { shadow, diff }).await {
        Ok(answer) => answer.to_string().into_bytes(),
        Err(problem) => return Outcome::Problem(told(problem)),
    };
    if body.len() > MAX_ANSWER - ENVELOPE {
        let status = StatusCode::PAYLOAD_TOO_LARGE;
        let detail = format!("the configuration has {} bytes, more than global takes", body.len());
        return Outcome::Problem(told(Problem::new(status, "Answer is too large", detail)));
    }
    Outcome::Body(body)
}

fn told(problem: Problem) -> wire::Problem {
    let Problem { status, title, detail, .. } = problem;
    wire::Problem { status: u32::from(status.as_u16()), title, detail }
}
