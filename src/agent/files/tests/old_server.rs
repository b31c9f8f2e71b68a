//! The file server of before 2013-12.

use std::os::unix::fs::symlink;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::*;

#[tokio::test]
async fn the_old_server_shows_what_it_showed() {
    let world = World::new(FilesSettings { v1_port: Some(0), ..settings() }).await;
    let told = world.told.v1.clone().unwrap();
    let (user, password) = told.credentials.expose();
    assert!(user.len() == 32 && password.len() == 32 && user != password);
    let base = told.uri.strip_prefix("http://").unwrap().strip_suffix("/instances").unwrap().to_owned();
    let address: SocketAddr = base.parse().unwrap();
    let authorization = format!("authorization: Basic {}\r\n", BASE64.encode(format!("{user}:{password}")));
    let get = async |path: &str| ask(address, "GET", &format!("/instances/{path}"), &authorization).await;
    for wrong in ["", "authorization: Basic eDp5\r\n", "authorization: Bearer x\r\n"] {
        assert_eq!(ask(address, "GET", "/instances/shop/app/note.txt", wrong).await.status, 401);
    }

    fs::create_dir(world.shop("app/inner")).unwrap();
    fs::write(world.shop("app/.hidden"), "").unwrap();
    for (name, target) in [
        ("in", "note.txt"),
        ("inner/up", "../note.txt"),
        ("across", "../logs/note.txt"),
        ("out", "../../../agent.lock"),
        ("passwd", "/etc/passwd"),
    ] {
        symlink(target, world.shop("app").join(name)).unwrap();
    }
    symlink("app", world.shop("top")).unwrap();
    for (path, body) in [
        ("shop/app/note.txt", "app of a guest"),
        ("shop/app%2Fnote.txt", "app of a guest"),
        ("shop//app/in", "app of a guest"),
        ("shop/app/inner/up", "app of a guest"),
        ("sad/logs/note.txt", "logs of a guest"),
        ("shop/logs", "note.txt                                   15B"),
        ("shop", "app/                                         -\nlogs/                                        -"),
        ("shop/", "app/                                         -\nlogs/                                        -"),
    ] {
        let reply = get(path).await;
        assert_eq!((reply.status, reply.body.as_str()), (200, body), "{path}");
    }
    let part = ask(address, "GET", "/instances/shop/app/note.txt", &format!("{authorization}range: bytes=0-2\r\n")).await;
    assert_eq!((part.status, part.body.as_str()), (206, "app"));
    for path in ["nobody/app", "new/app", "never/app", "shop/app/missing", "", "../instances/shop"] {
        let reply = get(path).await;
        assert_eq!((reply.status, reply.body.as_str(), reply.header("x-cascade")), (404, "Entity not found.\n", Some("pass")), "{path}");
    }
    for path in [
        "shop/app/../logs/note.txt",
        "shop/app/%2e%2e/x",
        "shop/startup",
        "shop/app/stop",
        "shop/app/across",
        "shop/app/out",
        "shop/app/passwd",
    ] {
        let reply = get(path).await;
        assert_eq!((reply.status, reply.body.as_str(), reply.header("x-cascade")), (403, "Not accessible\n", Some("pass")), "{path}");
    }
    for path in ["shop/top/note.txt", "shop/top"] {
        assert_eq!(get(path).await.status, 403, "a link is no top-level directory: {path}");
    }
}

#[tokio::test]
async fn without_its_switch_it_does_not_run() {
    assert_eq!(World::new(settings()).await.told.v1, None);
}
