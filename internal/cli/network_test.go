package cli

import (
	"testing"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
)

// A network is shown with its VMs, and with no others.
func TestNetworkShow(t *testing.T) {
	playDaemon(t, api.Protocol,
		&bangerv1.VM{
			Id: "1", Name: "db", State: "running", Network: "lab", DnsName: "db.vm", Addresses: []string{"10.31.0.2", "fd99::2"},
			Ports: []*bangerv1.Port{{HostPort: 5432, GuestPort: 5432}, {Address: "0.0.0.0", HostPort: 8080, GuestPort: 80}},
		},
		&bangerv1.VM{Id: "2", Name: "office", State: "running", Network: "office", DnsName: "office.vm", Addresses: []string{"10.31.0.3"}},
		&bangerv1.VM{Id: "3", Name: "web", State: "stopped", Network: "lab"},
		&bangerv1.VM{Id: "4", Name: "alone", State: "running"},
	)
	for args, want := range map[string]string{
		"lab": `Name: lab
VMs:  2

NAME   STATE     DNS NAME   ADDRESSES            PORTS
db     running   db.vm      10.31.0.2, fd99::2   5432 to 5432, 0.0.0.0:8080 to 80
web    stopped   -          -                    -
`,
		"empty": "Name: empty\nVMs:  0\n",
	} {
		if code, out, errText := run(t, "network", "show", args); code != 0 || out != want {
			t.Errorf("%s: code %d, %s\n%s\nwant\n%s", args, code, errText, out, want)
		}
	}
	const asJSON = `{
  "name": "office",
  "members": [
    {
      "id": "2",
      "name": "office",
      "state": "running",
      "dns_name": "office.vm",
      "addresses": [
        "10.31.0.3"
      ],
      "ports": []
    }
  ]
}
`
	if code, out, _ := run(t, "network", "show", "--json", "office"); code != 0 || out != asJSON {
		t.Errorf("code %d,\n%s", code, out)
	}
}
