//! Sticky sessions over the wire.

use bytes::Bytes;
use dewar_protocol::subjects;
use http::{Request, Response};
use http_body_util::Full;

use crate::stage::{App, Stage, eventually, fetch, registration, text};

async fn shop(name: &'static str) -> App {
    App::start(move |request: Request<hyper::body::Incoming>| async move {
        let mut response = Response::new(Full::new(Bytes::from(name)));
        if request.uri().path() == "/login" {
            response.headers_mut().insert("set-cookie", "JSESSIONID=s; Secure; Path=/shop".parse().unwrap());
        }
        response
    })
    .await
}

fn vcap_cookie(response: &Response<Bytes>) -> Option<String> {
    let cookies = response.headers().get_all("set-cookie").iter().map(|value| value.to_str().unwrap());
    cookies.into_iter().find(|cookie| cookie.starts_with("__VCAP_ID__=")).map(str::to_owned)
}

#[tokio::test]
async fn a_session_stays_with_its_instance_and_moves_when_that_is_gone() {
    let stage = Stage::set().await;
    let apps = [shop("one").await, shop("two").await, shop("three").await];
    for app in &apps {
        stage.register(&["shop.example"], app.address).await;
    }
    let login = stage.get("shop.example", "/login").await;
    let cookie = vcap_cookie(&login).unwrap();
    let own = text(login);
    let home = apps.iter().find(|app| cookie.starts_with(&format!("__VCAP_ID__=i-{};", app.address.port()))).unwrap();
    assert!(cookie.ends_with("; Path=/; HttpOnly; Secure"), "{cookie}");

    let instance = cookie.split(';').next().unwrap();
    let ask = async |cookies: String| {
        fetch(stage.router, Request::get("/").header("host", "shop.example").header("cookie", cookies).body(Full::default()).unwrap()).await
    };
    for _ in 0..9 {
        let response = ask(format!("JSESSIONID=s; {instance}")).await;
        assert_eq!(vcap_cookie(&response), None);
        assert_eq!(text(response), own);
    }
    let mut others = std::collections::BTreeSet::new();
    for _ in 0..9 {
        others.insert(text(ask(instance.to_owned()).await));
    }
    assert_eq!(others.len(), 3, "without a session the cookie binds nobody");

    stage.publish(subjects::ROUTER_UNREGISTER, &registration(&["shop.example"], home.address));
    let moved = eventually("the session's move", async || {
        Some(ask(format!("JSESSIONID=s; {instance}")).await).filter(|response| response.body() != own.as_bytes())
    })
    .await;
    assert_eq!(moved.status(), 200);
    let rebound = vcap_cookie(&moved).unwrap();
    assert!(!rebound.starts_with(&format!("{instance};")), "{rebound} binds to the instance that answered");
}
