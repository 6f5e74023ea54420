//! A name server for a laboratory's internet.

use super::announce;
use anyhow::{Context, Result};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{RData, Record, RecordType};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

type Records = BTreeMap<String, Vec<IpAddr>>;

/// Seconds. Short, so that a test can change a record.
const TTL: u32 = 1;

pub(super) async fn serve(listen: SocketAddr, records: &[String]) -> Result<()> {
    let records = Arc::new(parse(records)?);
    let socket = UdpSocket::bind(listen).await?;
    let listener = TcpListener::bind(listen).await?;
    announce(listen);
    let for_tcp = Arc::clone(&records);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let records = Arc::clone(&for_tcp);
            tokio::spawn(async move {
                while let Ok(length) = stream.read_u16().await {
                    let mut query = vec![0; usize::from(length)];
                    stream.read_exact(&mut query).await?;
                    let reply = answer(&records, &query)?;
                    stream.write_u16(u16::try_from(reply.len())?).await?;
                    stream.write_all(&reply).await?;
                }
                anyhow::Ok(())
            });
        }
    });
    let mut buffer = [0; 4096];
    loop {
        let (read, peer) = socket.recv_from(&mut buffer).await?;
        if let Ok(reply) = answer(&records, buffer.get(..read).unwrap_or_default()) {
            socket.send_to(&reply, peer).await?;
        }
    }
}

fn parse(records: &[String]) -> Result<Records> {
    let mut parsed = Records::new();
    for record in records {
        let (name, address) =
            record.split_once('=').with_context(|| format!("{record}: want name=address"))?;
        parsed.entry(format!("{}.", name.to_ascii_lowercase())).or_default().push(address.parse()?);
    }
    Ok(parsed)
}

fn answer(records: &Records, query: &[u8]) -> Result<Vec<u8>> {
    let query = Message::from_vec(query)?;
    let question = query.queries.first().context("no question")?;
    println!("asked for {} {}", question.name(), question.query_type());
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata.recursion_available = true;
    reply.add_query(question.clone());
    match records.get(&question.name().to_string().to_ascii_lowercase()) {
        None => reply.metadata.response_code = ResponseCode::NXDomain,
        Some(addresses) => {
            for address in addresses {
                let data = match (address, question.query_type()) {
                    (IpAddr::V4(ip), RecordType::A) => RData::A(A(*ip)),
                    (IpAddr::V6(ip), RecordType::AAAA) => RData::AAAA(AAAA(*ip)),
                    _ => continue,
                };
                reply.add_answer(Record::from_rdata(question.name().clone(), TTL, data));
            }
        }
    }
    Ok(reply.to_vec()?)
}
