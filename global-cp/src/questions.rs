//! What zones are asked, since only they compile. A zone dials and keeps one stream open for it.
//!
//! Bounded on every side: few questions at a time to a zone, a time for each, and a size. A question goes only to the
//! process that the zone's other streams belong to, so that what fences and revokes those counts here as well. A zone that
//! is connected to another replica is not asked from here: the answer says how to ask it instead. Rejected: forwarding
//! between replicas, which would need a port and an identity of their own for the sake of one question.

use crate::state::Global;
use crate::sync::authenticate;
use futures::StreamExt;
use http::StatusCode;
use meridian_api::{Problem, ProxyConfigRequest};
use meridian_core::{Resource, names};
use meridian_delta::server::Connection;
use meridian_proto::questions::answer::Outcome;
use meridian_proto::questions::question::Ask;
use meridian_proto::questions::zone_questions_server::{ZoneQuestions, ZoneQuestionsServer};
use meridian_proto::questions::{AT_ONCE, Answer, Hello, MAX_ANSWER, ProxyConfig, Question};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// A zone has this long for an answer: it may have to compile for a sidecar with thousands of services.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The first message of a stream comes within this.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// The zones that can be asked here, by name.
#[derive(Default)]
pub(crate) struct Questions {
    lines: Mutex<BTreeMap<String, Arc<Line>>>,
    next: AtomicU64,
}

/// A stream to one zone.
struct Line {
    /// The zone's process.
    instance: String,
    sender: mpsc::Sender<Result<Question, Status>>,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Outcome>>>,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Unanswered {
    #[error("it is not connected to this replica of global")]
    Away,
    #[error("it is asked too much at once; try again")]
    Busy,
    #[error("it did not answer within 10 s")]
    Late,
    #[error("its answer can't be read")]
    Unreadable,
}

/// What a zone may say of a question.
const OF_ZONES: [StatusCode; 7] = [
    StatusCode::BAD_REQUEST,
    StatusCode::FORBIDDEN,
    StatusCode::NOT_FOUND,
    StatusCode::CONFLICT,
    StatusCode::PAYLOAD_TOO_LARGE,
    StatusCode::INTERNAL_SERVER_ERROR,
    StatusCode::SERVICE_UNAVAILABLE,
];

/// The service; one for all connections.
pub(crate) struct QuestionService(Arc<Global>);

pub(crate) fn service(global: Arc<Global>) -> ZoneQuestionsServer<QuestionService> {
    ZoneQuestionsServer::new(QuestionService(global)).max_decoding_message_size(MAX_ANSWER)
}

/// What a sidecar is told, asked of its zone.
pub(crate) async fn proxy_config(
    global: &Global,
    dataplane: &Resource,
    asked: ProxyConfigRequest,
) -> Result<Value, Problem> {
    let (mesh, zone) = (&dataplane.key.mesh, &dataplane.key.zone);
    let name = names::display(&dataplane.key.name, &dataplane.labels);
    let ProxyConfigRequest { shadow, diff } = asked;
    let ask = ProxyConfig { mesh: mesh.clone(), name: name.to_owned(), shadow, diff };
    let outcome = global.questions.ask(global, zone, Ask::ProxyConfig(ask)).await;
    let unanswered = match outcome {
        Ok(Outcome::Body(body)) => match serde_json::from_slice(&body) {
            Ok(answer) => return Ok(answer),
            Err(_) => Unanswered::Unreadable,
        },
        Ok(Outcome::Problem(problem)) => {
            let status =
                u16::try_from(problem.status).ok().and_then(|status| StatusCode::from_u16(status).ok());
            // Others would speak of the asker's own request to global, or of the connection.
            let status = status.filter(|it| OF_ZONES.contains(it)).unwrap_or(StatusCode::BAD_GATEWAY);
            return Err(Problem::new(status, problem.title, format!("Zone {zone}: {}", problem.detail)));
        }
        Ok(Outcome::Hello(_)) => Unanswered::Unreadable,
        Err(unanswered) => unanswered,
    };
    let detail = format!(
        "Zone {zone} compiles for this sidecar, and {unanswered}. Its own control plane answers the same: \
         GET /meshes/{mesh}/dataplanes/{name}/_config there, or `meridian inspect dataplane {name} --mesh {mesh} --type \
         config` with its --address"
    );
    let status = match unanswered {
        Unanswered::Late => StatusCode::GATEWAY_TIMEOUT,
        Unanswered::Unreadable => StatusCode::BAD_GATEWAY,
        Unanswered::Away | Unanswered::Busy => StatusCode::SERVICE_UNAVAILABLE,
    };
    Err(Problem::new(status, "Could not ask the zone", detail))
}

impl Questions {
    async fn ask(&self, global: &Global, zone: &str, ask: Ask) -> Result<Outcome, Unanswered> {
        let line = self.lines().get(zone).cloned().ok_or(Unanswered::Away)?;
        let live = global.zones.get(zone).and_then(|link| link.connected());
        if live.is_none_or(|(instance, _)| instance != line.instance) {
            return Err(Unanswered::Away);
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let answer = line.send(id, ask)?;
        let _forgotten = Forget { line: &line, id };
        match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
            Ok(Ok(outcome)) => Ok(outcome),
            // The stream has ended.
            Ok(Err(_)) => Err(Unanswered::Away),
            Err(_) => Err(Unanswered::Late),
        }
    }

    /// The newest stream of a zone is the one that is asked.
    fn open(&self, zone: &str, line: Arc<Line>) {
        self.lines().insert(zone.to_owned(), line);
    }

    fn close(&self, zone: &str, line: &Arc<Line>) {
        line.waiting().clear();
        let mut lines = self.lines();
        if lines.get(zone).is_some_and(|present| Arc::ptr_eq(present, line)) {
            lines.remove(zone);
        }
    }

    fn lines(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Line>>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    fn new(instance: String) -> (Arc<Self>, mpsc::Receiver<Result<Question, Status>>) {
        let (sender, receiver) = mpsc::channel(AT_ONCE);
        (Arc::new(Self { instance, sender, waiting: Mutex::default() }), receiver)
    }

    fn send(&self, id: u64, ask: Ask) -> Result<oneshot::Receiver<Outcome>, Unanswered> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.waiting();
        if waiting.len() >= AT_ONCE {
            return Err(Unanswered::Busy);
        }
        self.sender.try_send(Ok(Question { id, ask: Some(ask) })).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Unanswered::Busy,
            mpsc::error::TrySendError::Closed(_) => Unanswered::Away,
        })?;
        waiting.insert(id, sender);
        Ok(receiver)
    }

    /// An answer that nobody waits for any more is dropped.
    fn take(&self, answer: Answer) {
        let waiting = self.waiting().remove(&answer.id);
        if let (Some(waiting), Some(outcome)) = (waiting, answer.outcome) {
            let _ = waiting.send(outcome);
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Outcome>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes room when whoever asked no longer waits, whatever the reason.
struct Forget<'a> {
    line: &'a Line,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.line.waiting().remove(&self.id);
    }
}

#[tonic::async_trait]
impl ZoneQuestions for QuestionService {
    type AnswerStream = ReceiverStream<Result<Question, Status>>;

    async fn answer(
        &self,
        request: Request<Streaming<Answer>>,
    ) -> Result<Response<Self::AnswerStream>, Status> {
        let connection =
            Connection::of(&request).cloned().ok_or_else(|| Status::internal("no connection"))?;
        let (client, _) = authenticate(&self.0, &connection).await?;
        let mut answers = request.into_inner();
        let first = tokio::time::timeout(HELLO_TIMEOUT, answers.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no hello came"))??;
        let Some(Outcome::Hello(Hello { instance })) = first.and_then(|answer| answer.outcome) else {
            return Err(Status::invalid_argument("a hello comes first"));
        };
        let (line, questions) = Line::new(instance);
        self.0.questions.open(&client.zone, Arc::clone(&line));
        let global = Arc::clone(&self.0);
        tokio::spawn(async move {
            let listen = async {
                while let Some(Ok(answer)) = answers.next().await {
                    line.take(answer);
                }
            };
            connection.closing.run_until_cancelled(listen).await;
            global.questions.close(&client.zone, &line);
        });
        Ok(Response::new(ReceiverStream::new(questions)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask() -> Ask {
        Ask::ProxyConfig(ProxyConfig::default())
    }

    #[tokio::test]
    async fn each_answer_finds_its_question() {
        let (line, mut questions) = Line::new("a".into());
        let (first, second) = (line.send(1, ask()).unwrap(), line.send(2, ask()).unwrap());
        let body = |text: &str| Some(Outcome::Body(text.into()));
        line.take(Answer { id: 2, outcome: body("two") });
        line.take(Answer { id: 7, outcome: body("nobody asked") });
        line.take(Answer { id: 1, outcome: body("one") });
        assert_eq!(first.await.unwrap(), Outcome::Body("one".into()));
        assert_eq!(second.await.unwrap(), Outcome::Body("two".into()));
        assert_eq!(questions.recv().await.unwrap().unwrap().id, 1);
    }

    #[tokio::test]
    async fn few_wait_at_a_time_and_who_gives_up_makes_room() {
        let (line, mut questions) = Line::new("a".into());
        for id in 0..AT_ONCE {
            line.send(id as u64, ask()).unwrap();
        }
        assert_eq!(line.send(99, ask()).unwrap_err(), Unanswered::Busy);
        drop(Forget { line: &line, id: 0 });
        assert_eq!(line.send(99, ask()).unwrap_err(), Unanswered::Busy, "the zone has not read it yet");
        questions.recv().await.unwrap().unwrap();
        line.send(99, ask()).unwrap();
        drop(questions);
        drop(Forget { line: &line, id: 1 });
        assert_eq!(line.send(100, ask()).unwrap_err(), Unanswered::Away);
    }

    #[tokio::test]
    async fn the_end_of_a_stream_ends_the_wait() {
        let all = Questions::default();
        let (line, _questions) = Line::new("a".into());
        all.open("east", Arc::clone(&line));
        let answer = line.send(1, ask()).unwrap();
        let (newer, _newer_questions) = Line::new("b".into());
        all.open("east", Arc::clone(&newer));
        all.close("east", &line);
        assert!(answer.await.is_err());
        assert!(Arc::ptr_eq(&all.lines()["east"], &newer), "the newer one stays");
        all.close("east", &newer);
        assert!(all.lines().is_empty());
    }
}
