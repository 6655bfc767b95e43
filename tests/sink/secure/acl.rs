//! Access lists of a Kafka, as an administrator sets them: CreateAcls and DeleteAcls of version 1, by hand.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::ensure;

/// What is allowed, by the protocol's numbers (`org.apache.kafka.common.acl.AclOperation`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Read = 3,
    Write = 4,
    Create = 5,
    Describe = 8,
    DescribeConfigs = 10,
}

/// On what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Resource {
    Topic(String),
    Group(String),
}

pub(crate) type Right = (Resource, Operation);

const CREATE_ACLS: i16 = 30;
const ALLOW: u8 = 3;
const LITERAL: u8 = 3;

/// Grants rights to a user.
pub(crate) fn grant(server: &str, user: &str, rights: &[Right]) -> anyhow::Result<()> {
    let mut body = Vec::new();
    body.extend(i32::try_from(rights.len())?.to_be_bytes());
    for (resource, operation) in rights {
        let (kind, name) = match resource {
            Resource::Topic(name) => (2, name),
            Resource::Group(name) => (3, name),
        };
        body.push(kind);
        text(&mut body, name)?;
        body.push(LITERAL);
        text(&mut body, &format!("User:{user}"))?;
        text(&mut body, "*")?;
        body.push(*operation as u8);
        body.push(ALLOW);
    }
    let answer = ask(server, CREATE_ACLS, &body)?;
    // A correlation id, a throttle time, and of each its error.
    let mut rest = answer.get(12..).unwrap_or_default();
    for _ in rights {
        let (error, after) = rest.split_at_checked(2).unwrap_or_default();
        ensure!(error == [0, 0], "an access list is refused: {answer:?}");
        let length = i16::from_be_bytes(after.get(..2).unwrap_or(&[0; 2]).try_into()?);
        let skipped = 2 + usize::try_from(length).unwrap_or(0);
        rest = after.get(skipped..).unwrap_or_default();
    }
    Ok(())
}

fn ask(server: &str, key: i16, body: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut request = Vec::new();
    request.extend(key.to_be_bytes());
    request.extend(1_i16.to_be_bytes());
    request.extend(7_i32.to_be_bytes());
    text(&mut request, "test")?;
    request.extend(body);
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(&i32::try_from(request.len())?.to_be_bytes())?;
    stream.write_all(&request)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::try_from(i32::from_be_bytes(length))?];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

fn text(to: &mut Vec<u8>, text: &str) -> anyhow::Result<()> {
    to.extend(i16::try_from(text.len())?.to_be_bytes());
    to.extend(text.as_bytes());
    Ok(())
}
