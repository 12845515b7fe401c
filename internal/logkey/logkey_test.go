package logkey_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"

	"banger/internal/logkey"
)

func TestOperationIsOnItsLines(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(logkey.Handler(slog.NewTextHandler(&out, nil))).With(logkey.VM, "v")
	ctx := logkey.WithOp(context.Background(), "op-1")
	log.InfoContext(context.WithoutCancel(ctx), "one", logkey.Step, "boot")
	log.InfoContext(context.Background(), "two")
	log.Info("three")
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 3 || !strings.HasSuffix(lines[0], "msg=one vm=v step=boot op=op-1") {
		t.Errorf("logged\n%s", out.String())
	}
	if strings.Contains(strings.Join(lines[1:], ""), "op=") {
		t.Errorf("lines of no operation have one:\n%s", out.String())
	}
}
