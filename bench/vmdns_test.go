package main

import (
	"fmt"
	"strings"
	"testing"
)

func TestLatencyOfDnsperf(t *testing.T) {
	var out strings.Builder
	out.WriteString("DNS Performance Testing Tool\n\n[Status] Sending queries (to 127.0.0.1:5300)\n")
	for i := range 200 {
		fmt.Fprintf(&out, "> NOERROR calm-otter-%d.vm A 0.%06d\n", i, 1000-i)
	}
	out.WriteString("> T calm-otter-1.vm A\n\nStatistics:\n")
	if got, err := latency(out.String(), 0.99); err != nil || got != 0.999 {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := latency(out.String(), 0.5); err != nil || got != 0.901 {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "> NOERROR a A x\n", "> NOERROR a.vm A soon\n"} {
		if got, err := latency(bad, 0.99); err == nil {
			t.Errorf("%q is %v", bad, got)
		}
	}
}
