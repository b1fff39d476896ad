package node_test

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/node/nodetest"
)

// browser is a page in a headless Chromium, driven over the DevTools protocol: JSON messages that end in a zero byte, on two pipes.
// It belongs to one goroutine.
type browser struct {
	t       *testing.T
	in      *os.File
	out     *bufio.Reader
	last    int
	session string
	// Problems are errors that the page has logged: exceptions, refused files, violations of the policy.
	problems []string
}

// needBrowser skips the test unless KILORAFT_TEST_BROWSER=1 asks for it; then Chromium must be there.
func needBrowser(t *testing.T) *browser {
	t.Helper()
	if os.Getenv("KILORAFT_TEST_BROWSER") != "1" {
		t.Skip("KILORAFT_TEST_BROWSER=1 runs this in Chromium")
	}
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatal("no chromium (Debian's package of that name): ", err)
	}
	fromUs, toIt, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	fromIt, toUs, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run", "--disable-extensions",
		"--disable-background-networking", "--disable-component-update", "--ignore-certificate-errors", "--remote-debugging-pipe", "--user-data-dir="+t.TempDir(), "about:blank")
	cmd.ExtraFiles = []*os.File{fromUs, toUs}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	fromUs.Close()
	toUs.Close()
	b := &browser{t: t, in: toIt, out: bufio.NewReaderSize(fromIt, 1<<20)}
	t.Cleanup(func() {
		toIt.Close() // it ends
		dead := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		dead.Stop()
		fromIt.Close()
	})
	var target struct{ TargetID string }
	b.call("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var attached struct{ SessionID string }
	b.call("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	b.session = attached.SessionID
	for _, domain := range []string{"Page", "Runtime", "Log"} {
		b.call(domain+".enable", nil, nil)
	}
	return b
}

// message is an answer or an event.
type message struct {
	ID     int
	Method string
	Result json.RawMessage
	Params json.RawMessage
	Error  *struct{ Message string }
}

// call sends a command and waits for its answer.
func (b *browser) call(method string, params, into any) {
	b.t.Helper()
	b.last++
	cmd := map[string]any{"id": b.last, "method": method}
	if params != nil {
		cmd["params"] = params
	}
	if b.session != "" {
		cmd["sessionId"] = b.session
	}
	text, err := json.Marshal(cmd)
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.in.Write(append(text, 0)); err != nil {
		b.t.Fatal(err)
	}
	for {
		text, err := b.out.ReadBytes(0)
		if err != nil {
			b.t.Fatalf("%s: %v", method, err)
		}
		var m message
		if err := json.Unmarshal(text[:len(text)-1], &m); err != nil {
			b.t.Fatal(err)
		}
		switch {
		case m.ID == b.last && m.Error != nil:
			b.t.Fatalf("%s: %s", method, m.Error.Message)
		case m.ID == b.last:
			if into != nil {
				if err := json.Unmarshal(m.Result, into); err != nil {
					b.t.Fatal(err)
				}
			}
			return
		case m.Method == "Runtime.exceptionThrown", m.Method == "Log.entryAdded":
			b.note(m.Params)
		}
	}
}

// note keeps what the page complains of. That a node does not answer is no fault of the page.
func (b *browser) note(params json.RawMessage) {
	var p struct {
		Entry struct{ Source, Level, Text, URL string }
	}
	_ = json.Unmarshal(params, &p)
	if p.Entry.Source == "network" || p.Entry.Level == "info" || p.Entry.Level == "verbose" {
		return
	}
	b.problems = append(b.problems, string(params))
}

// eval evaluates an expression, waits if it is a promise, and reads its value.
func (b *browser) eval(js string, into any) {
	b.t.Helper()
	var r struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails *struct {
			Text      string
			Exception struct{ Description string }
		}
	}
	b.call("Runtime.evaluate", map[string]any{"expression": js, "awaitPromise": true, "returnByValue": true}, &r)
	if e := r.ExceptionDetails; e != nil {
		b.t.Fatalf("%.200s: %s %s", js, e.Text, e.Exception.Description)
	}
	if into != nil && r.Result.Value != nil {
		if err := json.Unmarshal(r.Result.Value, into); err != nil {
			b.t.Fatal(err)
		}
	}
}

// text returns the text that people see.
func (b *browser) text() (s string) {
	b.t.Helper()
	b.eval("document.body?.innerText || ''", &s)
	return s
}

// until waits for a condition.
func (b *browser) until(js string) {
	b.t.Helper()
	nodetest.Eventually(b.t, 20*time.Second, func() error {
		var ok bool
		b.eval("Boolean("+js+")", &ok)
		if !ok {
			return fmt.Errorf("not so: %s\non a page that says: %.1500s", js, b.text())
		}
		return nil
	})
}

// open goes to an address and waits until it has loaded.
func (b *browser) open(url string) {
	b.t.Helper()
	b.call("Page.navigate", map[string]any{"url": url}, nil)
	b.until(fmt.Sprintf("document.readyState === 'complete' && location.href.startsWith(%q)", url))
}

// press presses and releases a key.
func (b *browser) press(key string) {
	b.t.Helper()
	codes := map[string]int{"Enter": 13, "Escape": 27, "Tab": 9, "ArrowRight": 39, "ArrowDown": 40}
	down := map[string]any{"type": "keyDown", "key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
	if key == "Enter" {
		down["text"] = "\r"
	}
	b.call("Input.dispatchKeyEvent", down, nil)
	b.call("Input.dispatchKeyEvent", map[string]any{"type": "keyUp", "key": key, "code": key, "windowsVirtualKeyCode": codes[key]}, nil)
}

// screen sets size and colours.
func (b *browser) screen(width, height int, phone, dark bool) {
	b.t.Helper()
	scale, scheme := 1, "light"
	if phone {
		scale = 2
	}
	if dark {
		scheme = "dark"
	}
	b.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height, "deviceScaleFactor": scale, "mobile": phone}, nil)
	b.call("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme},
		{"name": "prefers-reduced-motion", "value": "reduce"}}}, nil)
	b.eval("new Promise(r => setTimeout(r, 150))", nil) // two frames, and what observes sizes
}

// shot writes what the screen shows as a PNG.
func (b *browser) shot(file string) {
	b.t.Helper()
	var r struct{ Data string }
	b.call("Page.captureScreenshot", map[string]any{"format": "png"}, &r)
	png, err := base64.StdEncoding.DecodeString(r.Data)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(file, png, 0o644); err != nil {
		b.t.Fatal(err)
	}
	if len(png) > 200<<10 {
		b.t.Errorf("%s has %d bytes, at most 200 KiB are wanted in the repository", file, len(png))
	}
}
