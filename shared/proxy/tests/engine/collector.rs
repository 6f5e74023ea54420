//! A collector of OpenTelemetry: what it was sent, as JSON that a test can compare.

use crate::world::address;
use meridian_proxy_config::{self as config, TraceBackend};
use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::{
            ExportLogsServiceRequest, ExportLogsServiceResponse,
            logs_service_server::{LogsService, LogsServiceServer},
        },
        trace::v1::{
            ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_server::{TraceService, TraceServiceServer},
        },
    },
    common::v1::{AnyValue, KeyValue, any_value::Value as Any},
    resource::v1::Resource,
    trace::v1::Span,
};
use serde_json::{Map, Value, json};
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

#[derive(Clone)]
pub(crate) struct Collector {
    pub(crate) address: SocketAddr,
    logs: Arc<Mutex<Vec<Value>>>,
    spans: Arc<Mutex<Vec<(Value, Span)>>>,
}

impl Collector {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind(address()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let collector = Self { address, logs: Arc::default(), spans: Arc::default() };
        let served = tonic::transport::Server::builder()
            .add_service(LogsServiceServer::new(collector.clone()))
            .add_service(TraceServiceServer::new(collector.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(async move { served.await.unwrap() });
        collector
    }

    /// Its address, as the border has it.
    pub(crate) fn over_grpc(&self) -> config::Collector {
        config::Collector { endpoint: self.address.to_string(), http_path: None }
    }

    pub(crate) fn of_traces(&self) -> TraceBackend {
        TraceBackend::OpenTelemetry { collector: self.over_grpc() }
    }

    pub(crate) fn logs(&self) -> Vec<Value> {
        self.logs.lock().unwrap().clone()
    }

    /// With their resources.
    pub(crate) fn spans(&self) -> Vec<(Value, Span)> {
        self.spans.lock().unwrap().clone()
    }
}

fn resource(resource: Option<Resource>) -> Value {
    pairs(&resource.unwrap().attributes)
}

/// Attributes as an object.
pub(crate) fn pairs(pairs: &[KeyValue]) -> Value {
    let pair = |pair: &KeyValue| (pair.key.clone(), any(pair.value.as_ref()));
    Value::Object(pairs.iter().map(pair).collect::<Map<_, _>>())
}

fn any(value: Option<&AnyValue>) -> Value {
    match value.and_then(|value| value.value.as_ref()) {
        Some(Any::StringValue(text)) => json!(text),
        Some(Any::IntValue(number)) => json!(number),
        Some(Any::BoolValue(value)) => json!(value),
        Some(Any::KvlistValue(list)) => pairs(&list.values),
        other => panic!("{other:?}"),
    }
}

#[tonic::async_trait]
impl LogsService for Collector {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        for of in request.into_inner().resource_logs {
            let resource = resource(of.resource);
            for record in of.scope_logs.into_iter().flat_map(|scope| scope.log_records) {
                let (body, attributes) = (any(record.body.as_ref()), pairs(&record.attributes));
                let entry = json!({"resource": resource, "attributes": attributes, "body": body});
                self.logs.lock().unwrap().push(entry);
            }
        }
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of in request.into_inner().resource_spans {
            let resource = resource(of.resource);
            let spans = of.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.spans.lock().unwrap().extend(spans.map(|span| (resource.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}
