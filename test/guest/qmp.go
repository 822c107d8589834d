// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
)

// qmp is a client of QEMU's control socket. One command runs at a time.
type qmp struct {
	mu      sync.Mutex
	conn    net.Conn
	replies chan qmpMessage
	events  func(name string, data json.RawMessage)
}

type qmpMessage struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event    string          `json:"event"`
	Data     json.RawMessage `json:"data"`
	Greeting json.RawMessage `json:"QMP"`
}

// newQMP takes over a connection on which QEMU has not spoken yet.
func newQMP(ctx context.Context, conn net.Conn, events func(string, json.RawMessage)) (*qmp, error) {
	q := &qmp{conn: conn, replies: make(chan qmpMessage, 1), events: events}
	go q.read()
	if _, err := q.execute(ctx, "qmp_capabilities", nil); err != nil {
		return nil, err
	}
	return q, nil
}

func (q *qmp) read() {
	defer close(q.replies)
	decoder := json.NewDecoder(q.conn)
	for {
		var m qmpMessage
		if err := decoder.Decode(&m); err != nil {
			return
		}
		switch {
		case m.Event != "":
			q.events(m.Event, m.Data)
		case m.Greeting != nil:
		default:
			q.replies <- m
		}
	}
}

// execute runs one command and returns its result.
func (q *qmp) execute(ctx context.Context, command string, arguments any) (json.RawMessage, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	b, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, arguments})
	if err != nil {
		return nil, err
	}
	if _, err := q.conn.Write(b); err != nil {
		return nil, fmt.Errorf("QMP %s: %w", command, err)
	}
	select {
	case m, ok := <-q.replies:
		if !ok {
			return nil, fmt.Errorf("QMP %s: %w", command, errors.New("QEMU closed its control socket"))
		}
		if m.Error != nil {
			return nil, fmt.Errorf("QMP %s: %s", command, m.Error.Desc)
		}
		return m.Return, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("QMP %s: %w", command, ctx.Err())
	}
}
