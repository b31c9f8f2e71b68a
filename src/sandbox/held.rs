//! What the host keeps in memory for the handles of a store.
//!
//! A guest can have the host hold header fields, bodies on their way, sockets and answers that it never looks at. Each is counted
//! here, exactly where that is cheap and else with the most that there can be. Looking at every handle takes time, so it is done
//! at every tick of the engine's clock while the guest computes and when it has answered a request, not at every call. What a
//! guest can pile up between two looks is bounded by [`crate::guest`]'s limits on a store's handles.

use std::any::Any;

use wasmtime::component::ResourceTable;
use wasmtime_wasi::p2::{TcpSocket, UdpSocket};
use wasmtime_wasi_http::p2::body::HostIncomingBody;
use wasmtime_wasi_http::p2::types::{HostFutureIncomingResponse, HostIncomingResponse, HostOutgoingRequest, HostOutgoingResponse};
use wasmtime_wasi_http::{FieldMap, p3};

use crate::outbound::BUFFERED_BYTES;

/// The table's own entry and the largest thing of fixed size in one.
const HANDLE: u64 = 512;
/// A field besides its name and value: its place in the map, with the slack of a map that has just grown.
const FIELD: u64 = 256;
/// Data that a socket has taken from the guest and not sent yet, or has received.
const SOCKET: u64 = 64 << 10;
/// An exchange with a server: what the client has read ahead, and the request's body on its way.
const EXCHANGE: u64 = (64 << 10) + BUFFERED_BYTES;
/// A part of a body that has arrived.
const RECEIVED: u64 = 64 << 10;

/// Bytes that the host holds for all handles in a store's table, never less than it does.
pub(crate) fn bytes(table: &mut ResourceTable) -> u64 {
    table.iter_mut().map(|resource| HANDLE + content(resource)).sum()
}

fn content(resource: &(dyn Any + Send)) -> u64 {
    if let Some(map) = resource.downcast_ref::<FieldMap>() {
        fields(map)
    } else if let Some(response) = resource.downcast_ref::<HostOutgoingResponse>() {
        fields(&response.headers) + response.body.as_ref().map_or(0, |_| BUFFERED_BYTES)
    } else if let Some(request) = resource.downcast_ref::<HostOutgoingRequest>() {
        let texts = [&request.authority, &request.path_with_query].into_iter().flatten().map(|text| text.len() as u64).sum::<u64>();
        fields(&request.headers) + texts + request.body.as_ref().map_or(0, |_| BUFFERED_BYTES)
    } else if let Some(response) = resource.downcast_ref::<HostIncomingResponse>() {
        fields(&response.headers) + EXCHANGE
    } else if let Some(request) = resource.downcast_ref::<p3::Request>() {
        fields(&request.headers)
    } else if let Some(response) = resource.downcast_ref::<p3::Response>() {
        fields(&response.headers)
    } else if resource.is::<HostFutureIncomingResponse>() {
        EXCHANGE
    } else if resource.is::<HostIncomingBody>() {
        RECEIVED
    } else if resource.is::<TcpSocket>() || resource.is::<UdpSocket>() {
        SOCKET
    } else {
        0
    }
}

fn fields(map: &FieldMap) -> u64 {
    map.iter().map(|(name, value)| FIELD + name.as_str().len() as u64 + value.len() as u64).sum()
}

#[cfg(test)]
mod tests {
    use wasmtime_wasi_http::Error;

    use super::*;

    #[test]
    fn fields_count_with_what_they_hold() {
        let mut table = ResourceTable::new();
        assert_eq!(bytes(&mut table), 0);
        let mut map = FieldMap::new_mutable(100_000);
        map.append_raw(http::HeaderName::from_static("name"), http::HeaderValue::from_static("value")).unwrap();
        let handle = table.push(map).unwrap();
        assert_eq!(bytes(&mut table), HANDLE + FIELD + 9);
        table.delete(handle).unwrap();
        assert_eq!(bytes(&mut table), 0);
    }

    #[test]
    fn a_body_counts_until_it_is_on_its_way() {
        use http_body_util::{BodyExt, Empty};
        let body = || Empty::new().map_err(|never| -> Error { match never {} }).boxed_unsync();
        let mut table = ResourceTable::new();
        let response = HostOutgoingResponse { status: http::StatusCode::OK, headers: FieldMap::default(), body: Some(body()) };
        let handle = table.push(response).unwrap();
        assert_eq!(bytes(&mut table), HANDLE + BUFFERED_BYTES);
        table.get_mut(&handle).unwrap().body.take();
        assert_eq!(bytes(&mut table), HANDLE);
        table.push(HostIncomingBody::new(body())).unwrap();
        assert_eq!(bytes(&mut table), 2 * HANDLE + RECEIVED);
    }

    #[test]
    fn a_field_costs_no_more_than_is_charged_for_it() {
        // `http` keeps a name and a value in a slot of an array, and a slot of an index; both grow by doubling.
        let slot = size_of::<http::HeaderName>() + size_of::<http::HeaderValue>() + 40;
        assert!(2 * slot as u64 + 16 <= FIELD, "{slot}");
    }
}
