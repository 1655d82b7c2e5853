# ruff: noqa: E501  (wide characters count twice)
"""日本語: the command line's sentences in Japanese, by their English ones.

Rules: every sentence of cli/ is here, with the same placeholders (a test compares them). Words that an
admin types, and names of the field (queue id, Maildir, TLS), stay as they are.
"""

TEXTS = {
    # ── argparse's own ──
    "usage: ": "使い方: ",
    "options": "オプション",
    "positional arguments": "引数",
    "show this help message and exit": "この説明を表示して終了します",
    "show program's version number and exit": "バージョンを表示して終了します",
    "the following arguments are required: %s": "次の引数が必要です: %s",
    "unrecognized arguments: %s": "知らない引数です: %s",
    "argument %(argument_name)s: %(message)s": "引数 %(argument_name)s: %(message)s",
    "invalid choice: %(value)r (choose from %(choices)s)": "%(value)r は選べません (選択肢: %(choices)s)",
    "invalid %(type)s value: %(value)r": "%(value)r は %(type)s として正しくありません",
    "expected one argument": "値が一つ必要です",
    "expected at least one argument": "少なくとも一つの値が必要です",
    "expected at most one argument": "値は一つまでです",
    "ignored explicit argument %r": "値を取らないオプションに値があります: %r",
    # ── the whole ──
    "The mail relay that a small office plugs in and forgets.": "小さなオフィスが差し込んだら忘れていられるメールリレー。",
    "commands:": "コマンド:",
    "pi-relay COMMAND --help says more, with an example.": "詳しい説明と例: pi-relay COMMAND --help",
    "{command}: not available in this version": "{command}: このバージョンではまだ使えません",
    "there is no command {command!r}": "コマンド {command!r} はありません",
    "pi-relay -h lists them": "pi-relay -h で一覧を表示します",
    "{program} --help says how": "使い方は {program} --help で表示します",
    "the configuration file (default: {default}, or $PI_RELAY_CONFIG)": "設定ファイル (既定: {default} または $PI_RELAY_CONFIG)",
    "the configuration file": "設定ファイル",
    "example:": "例:",
    "hint: {hint}": "ヒント: {hint}",
    "warning": "警告",
    "one JSON document": "JSON で出力します",
    "run the relay in the foreground": "リレーをフォアグラウンドで動かす",
    "name every error and warning of the configuration file": "設定ファイルの誤りと警告をすべて示す",
    "healthy or not, and why; queue, smart hosts, devices, disk, memory, clock": "状態とその理由: キュー、スマートホスト、機器、ディスク、メモリ、時計",
    "list, show, retry, hold, release, delete or export what waits": "待っているメールの一覧、表示、再送、保留、解除、削除、書き出し",
    "the life of messages: by queue id, Message-ID, address or device": "メールの足跡: queue id、Message-ID、アドレス、機器で探す",
    "send a test message through the running relay and wait for its fate": "動いているリレーからテストメールを送り、結果を待つ",
    "make the hash of a device's password": "機器のパスワードのハッシュを作る",
    "make the key that signs mail of a domain, print its DNS record, and check it": "ドメインのメールに署名する鍵を作り、DNS レコードを示して確かめる",
    "let the running relay read its configuration file again": "動いているリレーに設定ファイルを読み直させる",
    "see a scan go through a relay to a stand-in smart host, and leave nothing behind": "スキャンがリレーを通って届くまでを試す (後には何も残さない)",
    "a stand-in smart host that keeps what it takes in a Maildir": "受け取ったメールを Maildir に保存する代役のスマートホスト",
    # ── serve, check, reload ──
    "Run the relay in the foreground. SIGTERM: finish what is under way (10 s at most), keep the rest."
    " SIGHUP, or pi-relay reload: read the file again; a bad one is refused and the last good one kept.": (
        "リレーをフォアグラウンドで動かします。SIGTERM: 進行中の処理を終え (最長 10 秒)、残りは保存します。"
        "SIGHUP または pi-relay reload: 設定ファイルを読み直します。誤りがあれば受け付けず、前の設定のまま動きます。"
    ),
    "Name every error and warning of the configuration file at once, each with file, line, key, and"
    " what to do. Exit code 3 where there is an error, 0 otherwise.": (
        "設定ファイルの誤りと警告をすべて、ファイル、行、キー、直し方とともに示します。"
        "終了コードは、誤りがあれば 3、なければ 0 です。"
    ),
    "a list of {line, key, severity, message, hint}": "{line, key, severity, message, hint} の一覧",
    "{file}: {errors} error(s), {warnings} warning(s)": "{file}: 誤り {errors} 件、警告 {warnings} 件",
    "Let the running relay read its configuration file again. A bad file is refused, and the last good"
    " one stays in force.": (
        "動いているリレーに設定ファイルを読み直させます。誤りがあれば受け付けず、前の設定のまま動きます。"
    ),
    "The relay has read its file again.": "リレーが設定ファイルを読み直しました。",
    # ── reaching the relay ──
    "the relay is not running (nobody answers at {path})": "リレーが動いていません ({path} に応答がありません)",
    "start it: systemctl start pi-relay, or pi-relay serve": "起動するには: systemctl start pi-relay または pi-relay serve",
    "no permission to speak to the relay at {path}": "リレーの {path} を使う権限がありません",
    "use sudo, or let an administrator add you to the group pi-relay": "sudo を使うか、管理者に pi-relay グループへの追加を頼んでください",
    "the relay does not answer": "リレーが応答しません",
    "pi-relay status; its log may say more": "pi-relay status またはログを見てください",
    "pi-relay check names every error and warning": "pi-relay check がすべての誤りと警告を示します",
    # ── status ──
    "Healthy or not, and why: the queue, each smart host's state and last error, each device's last"
    " message, disk, memory and clock. Exit code 0 while the relay runs, 4 when it does not.": (
        "状態とその理由: キュー、各スマートホストの状態と最後の誤り、各機器の最後のメール、ディスク、メモリ、時計。"
        "終了コードは、リレーが動いていれば 0、いなければ 4 です。"
    ),
    "The relay is well.": "リレーは正常です。",
    "The relay works, but:": "リレーは動いていますが:",
    "The relay is in trouble:": "リレーに問題があります:",
    "{messages} message(s), {size}, the oldest {age} old; {held} held, {corrupt} damaged": (
        "{messages} 通、{size}、最も古いもの {age}、保留 {held} 通、破損 {corrupt} 通"
    ),
    "{accepted} accepted, {relayed} relayed, {deferred} deferred, {failed} failed, {refused} refused": (
        "受付 {accepted}、中継 {relayed}、延期 {deferred}、失敗 {failed}、拒否 {refused}"
    ),
    "{version}, process {pid}, up {uptime}": "{version}、プロセス {pid}、稼働 {uptime}",
    "Relay": "リレー",
    "Queue": "キュー",
    "Totals": "累計",
    "Disk": "ディスク",
    "{size} free": "空き {size}",
    "Memory": "メモリ",
    "Clock": "時計",
    "Restart": "再起動",
    "{ago}, unasked: {reason}": "{ago}、意図しない再起動: {reason}",
    "SMART HOST": "スマートホスト",
    "LAST SUCCESS": "最後の成功",
    "LAST ERROR": "最後の誤り",
    "DEVICE": "機器",
    "ADDRESS": "アドレス",
    "LAST SEEN": "最後の接続",
    "ACCEPTED": "受付",
    "REFUSED": "拒否",
    "(unknown)": "(不明)",
    "ok": "正常",
    "paused": "休止中",
    "paced": "速度制限中",
    "{name} is paced: {reason}": "{name} は速度制限中です: {reason}",
    "unknown": "未使用",
    # ── times ──
    "{duration} ago": "{duration} 前",
    "never": "なし",
    "in {duration}": "{duration} 後",
    "now": "すぐ",
    # ── queue ──
    "Look at what waits, and decide over it. list, show and export work also while the relay is down.": (
        "待っているメールを見て、どうするかを決めます。list、show、export はリレーが止まっていても使えます。"
    ),
    "actions": "操作",
    "what waits": "待っているメールの一覧",
    "envelope and history of a message, or the message itself": "メールの宛先と履歴、または本文",
    "try messages at once": "メールをすぐに送ってみる",
    "keep messages until they are released": "メールを解除まで保留する",
    "let held messages go": "保留中のメールを解除する",
    "delete messages for ever": "メールを完全に削除する",
    "the message as it would be sent, on stdout": "メールを送信時の形で標準出力に書き出す",
    "only messages in this state": "この状態のメールだけ",
    "only those of this device or address": "この機器またはアドレスからのものだけ",
    "only those to a matching address; * is anything": "宛先が一致するものだけ (* は任意の文字列)",
    "a queue id": "queue id",
    "the message itself, in its place": "代わりにメールそのものを表示する",
    "every message that waits, and lift all pauses": "待っているすべてのメール (休止も解除する)",
    "every held message of this device": "この機器の保留中のメールすべて",
    "tell the senders by a report": "差出人に通知する",
    "do not ask": "確認しない",
    "(the relay is not running: this is what lies in {folder})": "(リレーは動いていません: {folder} の中身です)",
    "{name} is damaged: {reason}": "{name} は壊れています: {reason}",
    "Nothing waits.": "待っているメールはありません。",
    "STATE": "状態",
    "SIZE": "サイズ",
    "AGE": "経過",
    "NEXT TRY": "次の送信",
    "FROM": "差出人",
    "TO": "宛先",
    "{count} message(s), {size}": "{count} 通、{size}",
    " and {count} more": " ほか {count} 件",
    "queued": "待機",
    "deferred": "延期",
    "held": "保留",
    "attempting": "送信中",
    "pending": "未送信",
    "relayed": "中継済み",
    "failed": "失敗",
    "the mail log cannot be read: {problem}": "メールログが読めません: {problem}",
    "WHAT": "項目",
    "state": "状態",
    "from": "差出人",
    "submitted by": "送信元",
    "accepted": "受付",
    "size": "サイズ",
    "attempts": "試行",
    "next try": "次の送信",
    "to": "宛先",
    "Delete {count} message(s) for ever? [y/N] ": "{count} 通を完全に削除しますか? [y/N] ",
    "Nothing was deleted.": "何も削除していません。",
    "either {one} or {other} is needed": "{one} か {other} のどちらか一方が必要です",
    "there is no message {queue_id} in the queue": "キューに {queue_id} というメールはありません",
    "{count} message(s) will be tried at once": "{count} 通をすぐに送ります",
    "{count} message(s) held": "{count} 通を保留しました",
    "{count} message(s) released": "{count} 通の保留を解除しました",
    "{count} message(s) deleted": "{count} 通を削除しました",
    # ── trace ──
    "The life of the messages that match a queue id, a Message-ID, an address (* is anything) or a"
    " device: who sent it, each attempt with the other side's words, its end."
    " Exit code 5 without a match.": (
        "queue id、Message-ID、アドレス (* は任意の文字列)、機器に一致するメールの足跡: 送り主、"
        "各試行と相手の返答、結末。一致がなければ終了コードは 5 です。"
    ),
    "queue id, Message-ID, address or device": "queue id、Message-ID、アドレス、または機器",
    "only what the log says of the last 90s, 5m, 4h, 2d": "この期間のログだけ (90s、5m、4h、2d など)",
    "a list of {time, event, ...}": "{time, event, ...} の一覧",
    "WORD is empty": "WORD が空です",
    "the mail log knows nothing of {word}": "メールログに {word} はありません",
    "{text!r} is no duration like 90s, 5m, 4h or 2d": "{text!r} は 90s、5m、4h、2d のような期間ではありません",
    "(no message)": "(メールなし)",
    "accepted {size} from {sender}: {from} to {to}": "{sender} から {size} を受け付けました: {from} から {to} へ",
    "refused {sender}: {reply} ({reason})": "{sender} を拒否しました: {reply} ({reason})",
    ", not as {claimed} (changed: {rewritten})": "、{claimed} を差し替え (変更: {rewritten})",
    "goes to {next_hop} as {from}, not as {claimed} (changed: {rewritten})": (
        "{next_hop} には {claimed} ではなく {from} として送ります (変更: {rewritten})"
    ),
    "{to}: {next_hop} took it after {delay} (attempt {attempt}): {reply}": (
        "{to}: {next_hop} が {delay} 後に受け取りました ({attempt} 回目): {reply}"
    ),
    "{to}: not yet, {next_hop} said: {reply}; next try {next_attempt}": (
        "{to}: 延期、{next_hop} の返答: {reply}、次の送信 {next_attempt}"
    ),
    "{to}: failed, {next_hop} said: {reply}": "{to}: 失敗、{next_hop} の返答: {reply}",
    "{next_hop} is paused until {until}: {reason}": "{next_hop} は {until} まで休止: {reason}",
    "{next_hop} is used again": "{next_hop} を再び使います",
    "held: {reason}": "保留: {reason}",
    "released": "保留を解除",
    "deleted: {reason}": "削除: {reason}",
    "damaged and moved aside: {reason}": "破損のため別の場所へ移しました: {reason}",
    "alert: {reason}": "警報: {reason}",
    "{device} used {what}": "{device} が {what} を使いました",
    # ── send-test ──
    "Send a test message through the running relay and wait for its fate, telling each step."
    " Exit code 1 when it failed, or was not relayed in time.": (
        "動いているリレーからテストメールを送り、一歩ずつ伝えながら結果を待ちます。"
        "失敗したか、時間内に中継されなければ、終了コードは 1 です。"
    ),
    "where it goes": "宛先",
    "by this smart host, whatever the routes say": "routes によらず、このスマートホストで送る",
    "how long to wait (default: 60)": "待つ秒数 (既定: 60)",
    "{text!r} is no number of seconds": "{text!r} は秒数ではありません",
    "queued as {queue_id}: {size}, from {sender} to {to}": "{queue_id} として待機: {size}、{sender} から {to} へ",
    "attempt {attempts}: {next_hop} said: {reply}; next try {next_try}": (
        "{attempts} 回目: {next_hop} の返答: {reply}、次の送信 {next_try}"
    ),
    "It still waits, and will be tried on: pi-relay queue show {queue_id}": (
        "まだ待っています。送信は続きます: pi-relay queue show {queue_id}"
    ),
    "held: pi-relay queue show {queue_id} says why": "保留されました: 理由は pi-relay queue show {queue_id}",
    "its fate is no longer known": "結果はもうわかりません",
    "pi-relay trace {queue_id} tells it": "pi-relay trace {queue_id} で見られます",
    "relayed: {next_hop} said: {reply}": "中継しました: {next_hop} の返答: {reply}",
    "failed: {next_hop} said: {reply}": "失敗しました: {next_hop} の返答: {reply}",
    # ── password ──
    "Read a line from stdin (hidden on a terminal) and print its hash, for password_hash of a device."
    " With --generate, make the password: at most 20 ASCII characters, none that looks like another.": (
        "標準入力から一行読み (端末では表示しません)、機器の password_hash に書くハッシュを出力します。"
        "--generate では、見間違えない 20 文字以内の ASCII のパスワードを作ります。"
    ),
    "make a password, and print it too": "パスワードを作り、それも出力する",
    "{password, password_hash}": "{password, password_hash}",
    "password": "パスワード",
    "Password: ": "パスワード: ",
    "Once more: ": "もう一度: ",
    "the password is empty": "パスワードが空です",
    "pi-relay password --generate makes one": "pi-relay password --generate で作れます",
    "the two are not the same": "二つが一致しません",
    # ── devices ──
    "who has submitted, known or not, and what would mend refusals; add a device": (
        "送ってきた機器 (未知のものも) と拒否の直し方、機器の追加"
    ),
    "Who has submitted since the start of the relay, known or not: address, mac, last message, and where"
    " it was refused the reason and the lines of the file that would mend it. Exit code 4 when the relay"
    " does not run.": (
        "リレーの起動後に送ってきた機器 (未知のものも): アドレス、mac、最後の接続、拒否されていればその理由と、"
        "直すために設定ファイルに書く行。リレーが動いていなければ終了コードは 4 です。"
    ),
    "add a device to the file, and print what to type into its menu": (
        "設定ファイルに機器を加え、機器のメニューに入力する内容を表示する"
    ),
    "Add a device to the configuration file, whose comments and order stay, and print the sheet to type"
    " into its menu. It is known by an address or a mac, or by a password that is made for it, or by both"
    " together.": (
        "設定ファイルに機器を加え (コメントと順序はそのまま)、機器のメニューに入力する内容を表示します。"
        "機器はアドレスか mac、または作られるパスワード、あるいはその両方で見分けます。"
    ),
    "its name in the log and in status": "ログと status での名前",
    "its address, or a network": "機器のアドレス、またはネットワーク",
    "its mac address, for a device on DHCP": "機器の mac アドレス (DHCP の機器に)",
    "make a user name and a password for it": "ユーザー名とパスワードを作る",
    "Nobody has submitted yet, and the file has no devices.": "まだ誰も送っておらず、設定ファイルに機器もありません。",
    "MAC": "MAC",
    "{who}: {reply}": "{who}: {reply}",
    "The lines go into {file}; then: pi-relay check && pi-relay reload": (
        "この行を {file} に書き、その後: pi-relay check && pi-relay reload"
    ),
    "this is the router: a port that it forwards to this machine arrives so": (
        "これはルーターです: この機械へ転送されたポートはこう見えます"
    ),
    "take the forward away; or, if it is a device of yours behind it:": (
        "転送をやめてください。その先が自分の機器なら:"
    ),
    "from the Internet, and rightly turned away": "インターネットからで、断って正解です",
    "in each section of a listener that it shall reach:": "使わせる listeners のそれぞれに:",
    "to let it send without a password:": "パスワードなしで送らせるなら:",
    "it has to sign in: give it this user name and its password": (
        "認証が必要です: このユーザー名とパスワードを機器に入力してください"
    ),
    "this port wants a password; pi-relay devices add NAME --login makes one": (
        "このポートにはパスワードが必要です: pi-relay devices add NAME --login で作れます"
    ),
    "only with a password: pi-relay devices add NAME --login makes one": (
        "パスワードが必要です: pi-relay devices add NAME --login で作れます"
    ),
    "there is no such user; pi-relay devices add NAME --login makes one": (
        "そのユーザーはいません: pi-relay devices add NAME --login で作れます"
    ),
    "its user name counts only from its own address": "このユーザー名は、決められたアドレスからしか使えません",
    "its user name counts only with its own mac": "このユーザー名は、決められた mac からしか使えません",
    "type the password into the device again, or make a new one: pi-relay password --generate": (
        "機器にパスワードを入力し直すか、新しく作ってください: pi-relay password --generate"
    ),
    "it does not speak TLS from the first byte on: give it port 587 or 25": (
        "最初から TLS で話す機器ではありません: ポート 587 か 25 にしてください"
    ),
    "its TLS is too old; for this device alone:": "TLS が古すぎます。この機器だけに:",
    "it does not trust the certificate: pi-relay tls export-ca FILE, and install that": (
        "証明書を信頼していません: pi-relay tls export-ca FILE で書き出し、機器に入れてください"
    ),
    "switch TLS or STARTTLS on in its menu; where it has none:": (
        "機器のメニューで TLS か STARTTLS を有効に。その設定がなければ:"
    ),
    "forgiven only to clients of the local networks": "ローカルネットワークの機器にだけ許されます",
    "or, if that domain is yours:": "または、そのドメインが自分のものなら:",
    "larger than any smart host takes: lower the resolution, or split the scan": (
        "どのスマートホストの上限よりも大きいです: 解像度を下げるか、スキャンを分けてください"
    ),
    "it speaks something else: is the port in its menu right?": (
        "SMTP ではない通信です: 機器のメニューのポートは正しいですか?"
    ),
    "the queue or its disk is full: pi-relay status says more": (
        "キューかディスクがいっぱいです: pi-relay status を見てください"
    ),
    # ── devices add ──
    "the device could not be recognised: an address, a mac or a password is needed": (
        "これでは機器を見分けられません: アドレスか mac かパスワードが必要です"
    ),
    "give --address, --mac or --login, or several of them": "--address、--mac、--login のどれか (いくつでも) を付けてください",
    "mend these first: nothing was written": "先にこれらを直してください: 何も書き込みませんでした",
    "{file} was changed meanwhile: nothing was written": "{file} がその間に変更されたため、何も書き込みませんでした",
    "STARTTLS": "STARTTLS",
    "SSL/TLS (not STARTTLS)": "SSL/TLS (STARTTLS ではない)",
    "none": "なし",
    "{name} is in {file}, line {line}.": "{name} を {file} の {line} 行目に加えました。",
    "No listener of the file is one that it could use: see [[listeners]].": (
        "設定ファイルに、この機器が使える待ち受けがありません: [[listeners]] を見てください。"
    ),
    "To put it in force: pi-relay reload": "有効にするには: pi-relay reload",
    "In the menu of the device (SMTP, e-mail server, scan to e-mail):": (
        "機器のメニュー (SMTP、メールサーバー、スキャン to メール) に:"
    ),
    "STARTTLS; none if it has none": "STARTTLS (なければ「なし」)",
    "SMTP server": "SMTP サーバー",
    "Port": "ポート",
    "Encryption": "暗号化",
    "Verify the certificate": "証明書の検証",
    "no; or install the CA: pi-relay tls export-ca FILE": "しない (または CA を入れる: pi-relay tls export-ca FILE)",
    "Authentication": "認証",
    "on (SMTP AUTH: PLAIN or LOGIN)": "あり (SMTP 認証: PLAIN または LOGIN)",
    "off": "なし",
    "User name": "ユーザー名",
    "Password": "パスワード",
    "Sender address": "送信元アドレス",
    "an address of your own domain": "自分のドメインのアドレス",
    "The password is not shown again; the file keeps only its hash.": (
        "パスワードは二度と表示されません。ファイルにはハッシュだけが残ります。"
    ),
    "{address} (or {hostname}, if it finds that name)": "{address} (名前が引けるなら {hostname} でも)",
    # ── tls ──
    "the certificate that devices see: show it, renew it, export its CA": "機器が見る証明書: 表示、更新、CA の書き出し",
    "The certificate that devices see: a local CA and a certificate of it, made and renewed by pi-relay,"
    " or your own files of [tls]. Works also while the relay is down.": (
        "機器が見る証明書: pi-relay が作り更新するローカル CA とその証明書、または [tls] に書かれた自前のファイル。"
        "リレーが止まっていても使えます。"
    ),
    "names, addresses, validity, issuer, fingerprints": "名前、アドレス、有効期間、発行者、指紋",
    "make a new certificate now, and serve it": "新しい証明書をすぐに作り、使い始める",
    "the certificate of the local CA, for devices that verify": "ローカル CA の証明書 (検証する機器のため)",
    "where to (-: stdout)": "書き出し先 (-: 標準出力)",
    "in DER, which some printers want, not in PEM": "PEM ではなく、一部のプリンターが求める DER で",
    "overwrite FILE": "FILE に上書きする",
    "a relay that has never run has no certificate: pi-relay tls renew makes it; else try sudo": (
        "一度も動いていないリレーに証明書はありません (pi-relay tls renew で作れます)。または sudo を使ってください"
    ),
    "there is no folder {folder}": "フォルダ {folder} がありません",
    "renew it where it came from; the relay takes up the new files by itself": (
        "発行元で更新してください。新しいファイルはリレーが自分で読み込みます"
    ),
    "your own, from [tls]": "自前のもの、[tls] の指定",
    "made and renewed by pi-relay": "pi-relay が作り、更新するもの",
    "{begin} to {end}, {days} days left": "{begin} から {end} まで、残り {days} 日",
    "Certificate": "証明書",
    "Names": "名前",
    "Addresses": "アドレス",
    "Valid": "有効期間",
    "Issuer": "発行者",
    "Local CA": "ローカル CA",
    "{subject}, until {end}": "{subject}、{end} まで",
    "SHA-256 of the CA": "CA の SHA-256",
    "For a device that verifies certificates: pi-relay tls export-ca FILE": (
        "証明書を検証する機器には: pi-relay tls export-ca FILE"
    ),
    "the clock of this machine is wrong: nothing is renewed until it is right": (
        "この機械の時計が狂っています: 直るまで何も更新しません"
    ),
    "the certificate has expired; it is served all the same": "証明書の期限が切れています (それでも使い続けます)",
    "DER is no text for a terminal": "DER は端末に表示できません",
    "name a file": "ファイルを指定してください",
    "The certificate of the local CA is in {file}. It is no secret.": (
        "ローカル CA の証明書を {file} に書き出しました。秘密ではありません。"
    ),
    "devices see your own certificate, {file}, not one of a local CA": (
        "機器が見るのは自前の証明書 {file} で、ローカル CA のものではありません"
    ),
    "install the certificate of whoever issued it, where a device does not know it already": (
        "機器が発行者を知らなければ、発行者の証明書を入れてください"
    ),
    "{file} is there already": "{file} はすでにあります",
    "--force overwrites it": "--force で上書きします",
    "nothing was written": "何も書き込みませんでした",
    """\
To install it:
  printer, scanner   its web page, under security or certificates: "import CA certificate"; some want --der
  Windows            open the file (named .crt): "Install Certificate", "Local Machine", "Trusted Root ..."
  iPhone, iPad       send it to yourself, open it; Settings: "Profile Downloaded"; then General, About,
                     "Certificate Trust Settings"
  Android            Settings, Security, "Encryption & credentials", "Install a certificate", "CA certificate"
  macOS              open it in Keychain Access, then "Trust", "Always Trust"
  Debian             as /usr/local/share/ca-certificates/NAME.crt, then update-ca-certificates
Where a device asks whether to trust: compare the SHA-256 with `pi-relay tls show`.""": """\
入れ方:
  プリンター、スキャナー  本体の Web ページの「セキュリティ」や「証明書」で「CA 証明書のインポート」(--der が必要なものもあります)
  Windows                 ファイル (.crt) を開き「証明書のインストール」「ローカル コンピューター」「信頼されたルート証明機関」
  iPhone、iPad            自分に送って開き、設定の「プロファイルがダウンロード済み」、続いて 一般、情報、「証明書信頼設定」
  Android                 設定、セキュリティ、「暗号化と認証情報」、「証明書のインストール」、「CA 証明書」
  macOS                   キーチェーンアクセスで開き、「信頼」を「常に信頼」に
  Debian                  /usr/local/share/ca-certificates/NAME.crt に置き、update-ca-certificates
機器が信頼してよいか尋ねたら、`pi-relay tls show` の SHA-256 と見比べてください。""",
    # ── dkim ──
    "Make the key that signs mail of a domain (DKIM), print the record to publish in DNS and the lines"
    " for the configuration file, and look whether the record is published. A key that is there is"
    " kept, and its record printed again. Exit code 1 while the record is missing or wrong; a key just"
    " made may lack it.": (
        "ドメインのメールに署名する鍵 (DKIM) を作り、DNS に公開するレコードと設定ファイルに書く行を示し、"
        "公開されているかを確かめます。鍵がすでにあれば変えず、レコードをもう一度示します。"
        "レコードがないか違っていれば終了コードは 1 です (作ったばかりの鍵なら、まだなくても 0)。"
    ),
    "the domain of your senders": "差出人のドメイン",
    "the key's name in DNS (default: relay1)": "DNS での鍵の名前 (既定: relay1)",
    "the kind of a new key (default: rsa)": "新しい鍵の種類 (既定: rsa)",
    "{path} is there already, and is of type {kind}": "{path} はすでにあり、種類は {kind} です",
    "choose another --selector for the new key": "新しい鍵には別の --selector を選んでください",
    "{text!r} is no domain": "{text!r} はドメインではありません",
    "{text!r} is no selector": "{text!r} は selector ではありません",
    "for example: {example}": "例: {example}",
    "A new key was made: {path}": "新しい鍵を作りました: {path}",
    "The key is there already: {path}": "鍵はすでにあります: {path}",
    "1. Publish this TXT record in the DNS of {domain}:": "1. {domain} の DNS に次の TXT レコードを公開してください:",
    "name": "名前",
    "value": "値",
    "or, as a line of a zone file:": "または、ゾーンファイルの行として:",
    "2. {file} has this key already.": "2. {file} にはこの鍵がすでに書かれています。",
    "2. Then add these lines to {file}, and run: pi-relay check && pi-relay reload": (
        "2. 次に {file} に以下の行を加え、pi-relay check && pi-relay reload を実行してください"
    ),
    "In DNS:": "DNS では:",
    "the record is right.": "レコードは正しく公開されています。",
    "cannot be asked now: {problem}": "今は問い合わせできません: {problem}",
    "not there yet (new records may take an hour to be seen everywhere)": (
        "まだありません (新しいレコードが行き渡るまで一時間ほどかかることがあります)"
    ),
    "there are several TXT records; take out all but the right one": (
        "TXT レコードが複数あります。正しいもの以外を消してください"
    ),
    "another record stands there; put the one above in its place, or choose another --selector": (
        "別のレコードがあります。上のものに置き換えるか、別の --selector を選んでください"
    ),
    "the key was revoked (p= is empty); choose another --selector": (
        "この鍵は失効しています (p= が空)。別の --selector を選んでください"
    ),
    # ── demo ──
    "Start a relay and a stand-in smart host in a temporary folder, let a pretend printer send a scan of"
    " 5 MB, and show how it arrives. Nothing of it is left behind.": (
        "一時フォルダでリレーと代役のスマートホストを動かし、プリンター役が 5 MB のスキャンを送って、"
        "届くまでを見せます。後には何も残しません。"
    ),
    "a stand-in smart host": "代役のスマートホスト",
    "a relay": "リレー",
    "a pretend printer sends a scan of {size}": "プリンター役が {size} のスキャンを送信",
    "the scan arrives at the smart host": "スキャンがスマートホストに到着",
    "the relay refused the scan: {reply}": "リレーがスキャンを拒否しました: {reply}",
    "Its trail, as pi-relay trace {queue_id} tells it:": "その足跡 (pi-relay trace {queue_id} の表示):",
    "sent:    scan.pdf, {size}, sha256 {digest}": "送信: scan.pdf、{size}、sha256 {digest}",
    "arrived: scan.pdf, {size}, sha256 {digest}": "到着: scan.pdf、{size}、sha256 {digest}",
    "what arrived is not what was sent": "届いたものが送ったものと違います",
    "that did not work": "うまくいきませんでした",
    "Byte for byte the same. Nothing of this demo is left behind.": (
        "1 バイトも違わず届きました。このデモの後には何も残っていません。"
    ),
    # ── sink ──
    "The stand-in smart host: takes mail, keeps it in a Maildir, answers as scripted. No TLS, no AUTH.": (
        "代役のスマートホスト: メールを受け取り、Maildir に保存し、指定どおりに応答します。TLS と AUTH はありません。"
    ),
    "  (the first recipient is put off, all others are taken)": "  (最初の宛先は後回し、ほかはすべて受け取る)",
    "where it listens (default: 127.0.0.1:2526; port 0: any free one)": (
        "待ち受けるアドレス (既定: 127.0.0.1:2526、ポート 0: 空いているもの)"
    ),
    "where it keeps mail (default: a new temporary folder)": "メールの保存先 (既定: 新しい一時フォルダ)",
    "wait before each reply": "応答のたびに待つ",
    "break the connection after so many bytes of a message": "メールをこのバイト数だけ受けたら接続を切る",
    "answer VERB with CODE, or with 'CODE words'; several for one verb are used in turn, the last one"
    " stays; VERB: {verbs} (DOT: the end of the message)": (
        "VERB に CODE または 'CODE 文' で応答する。一つの VERB に複数あれば順に使い、最後のものが残る。"
        "VERB: {verbs} (DOT: メールの終わり)"
    ),
    "{text!r} is no HOST:PORT": "{text!r} は HOST:PORT ではありません",
    "{text!r} is no VERB=CODE like RCPT=550": "{text!r} は RCPT=550 のような VERB=CODE ではありません",
    "listening on {address}, mail goes to {folder}": "{address} で待ち受けています、保存先は {folder}",
    "took {size} bytes from <{sender}> to {to}: {file}": "{size} バイトを受け取りました (<{sender}> から {to}): {file}",
    "broke off amid a message": "メールの途中で切断しました",
    # ── sendmail ──
    "sendmail(1) for the programs of this machine: a message on stdin goes into the queue": (
        "この機械のプログラムのための sendmail(1): 標準入力のメールをキューに入れる"
    ),
    "Take a message on stdin and hand it to the running relay, as sendmail(1) does: for cron, smartd and"
    " other programs of this machine. The package installs it as /usr/sbin/sendmail too.": (
        "標準入力のメールを、sendmail(1) と同じように動作中のリレーに渡します。cron や smartd など、この機械の"
        "プログラムのためのものです。パッケージは /usr/sbin/sendmail としても導入します。"
    ),
    "also to the addresses in To, Cc and Bcc": "To、Cc、Bcc のアドレスにも送る",
    "a line with a lone dot ends nothing": "ドットだけの行で終わりとしない",
    "the sender (reverse-path)": "差出人 (reverse-path)",
    "the name for a From that is missing": "From がないときに入れる名前",
    "report: never, or success,failure,delay": "通知: never、または success,failure,delay",
    "what a report returns of the message": "通知にメールのどこまでを入れるか",
    "an id that reports repeat": "通知に書かれる ID",
    "-oi is -i; no other matters": "-oi は -i と同じ。他は無視する",
    "m: send (the default); p: list the queue": "m: 送る (既定)、p: キューの一覧",
    "exit codes of sysexits.h, as programs expect of sendmail": "sendmail に期待される sysexits.h の終了コードを使う",
    "-b{mode} is not available": "-b{mode} は使えません",
    "no recipient is given": "宛先がありません",
    "name addresses, or -t to take them from the header": "アドレスを書くか、-t でヘッダーから取ります",
    "{text!r} is no address": "{text!r} はアドレスではありません",
    "the message": "メール",
    "the relay does not answer on this machine: {trouble}": "この機械でリレーが応答しません: {trouble}",
    "systemctl start pi-relay": "systemctl start pi-relay",
    # ── backup, restore ──
    "configuration, secrets, keys and certificates, and the queue if wanted, into one file": (
        "設定、秘密情報、鍵、証明書 (望めばキューも) を一つのファイルに書き出す"
    ),
    "put back what pi-relay backup has written, and check it": "pi-relay backup が書いたものを戻して検査する",
    "Write the configuration, its secrets, keys and certificates, and with --queue the mail that waits,"
    " into one file of mode 0600. The relay may run, but for --queue it must be stopped.": (
        "設定、その秘密情報、鍵、証明書を、--queue があれば待っているメールも、モード 0600 の一つのファイルに書きます。"
        "リレーは動いていて構いませんが、--queue には停止が必要です。"
    ),
    "where to write it; - is stdout": "書き出す先。- は標準出力",
    "the mail that waits, too": "待っているメールも",
    "replace FILE if it exists": "FILE があれば置き換える",
    "{path} does not exist": "{path} はありません",
    "the relay is running: what it delivers after the backup would be sent again": (
        "リレーが動いています。バックアップの後に配信されたメールがもう一度送られることになります"
    ),
    "systemctl stop pi-relay first, or leave out --queue": "先に systemctl stop pi-relay とするか、--queue を外します",
    "not in the backup, for it does not exist: {path}": "ファイルがないため、バックアップに入っていません: {path}",
    "{path} cannot be read or written": "{path} を読み書きできません",
    "use sudo": "sudo を使います",
    "{files} files, {size}: {path}": "{files} ファイル、{size}: {path}",
    "It holds passwords and keys: keep it where nobody else reads it.": (
        "パスワードと鍵が入っています。他の人が読めない所に保管してください。"
    ),
    "{path} exists already": "{path} はもうあります",
    "another name, or --force": "別の名前にするか、--force を付けます",
    "it has no manifest": "目録がありません",
    "it was made by a newer pi-relay ({version})": "より新しい pi-relay ({version}) で作られたものです",
    "{name} does not belong in it": "{name} は入っているはずのないものです",
    "files are missing": "ファイルが足りません",
    "{path} is no whole backup of pi-relay: {why}": "{path} は pi-relay の完全なバックアップではありません: {why}",
    "nothing was changed; take another file": "何も変えていません。別のファイルを使ってください",
    "Put back what pi-relay backup has written, and check it. The relay must be stopped. Files of the"
    " configuration that are here already stay, with .before-restore at the end of their names.": (
        "pi-relay backup が書いたものを戻して検査します。リレーは停止していなければなりません。すでにある設定ファイルは、"
        "名前の後に .before-restore を付けて残します。"
    ),
    "what pi-relay backup has written": "pi-relay backup が書いたもの",
    "the mail that waited, too": "待っていたメールも",
    "the relay is running": "リレーが動いています",
    "systemctl stop pi-relay first": "先に systemctl stop pi-relay とします",
    "{path} cannot be written": "{path} に書けません",
    "restored: {files} files of {created_at}": "戻しました: {created_at} の {files} ファイル",
    "The mail in the backup was left out: --queue restores it too.": (
        "バックアップにあるメールは戻していません。--queue で戻せます。"
    ),
    "Now: systemctl start pi-relay": "次に: systemctl start pi-relay",
    "{path} holds no configuration": "{path} に設定がありません",
    "the backup holds no queue": "バックアップにキューがありません",
    "restore without --queue": "--queue なしで戻します",
    "{path} holds mail, which a restored queue would replace": "{path} にはメールがあり、戻すと失われます",
    "let it be delivered first, or restore without --queue": "先に配信させるか、--queue なしで戻します",
}
