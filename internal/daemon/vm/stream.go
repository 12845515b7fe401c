package vm

import (
	"context"
	"net"
	"net/http"
	"time"

	"banger/internal/daemon/relay"
	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/logkey"
	"banger/internal/model"
)

// streamOpenTimeout bounds how long an agent may take to accept a stream.
const streamOpenTimeout = 30 * time.Second

// forwarded are the requests a client may make of an agent through the daemon.
// The others change what the daemon believes of the guest.
var forwarded = map[guest.Kind]bool{
	guest.KindPing: true, guest.KindExec: true, guest.KindCopyIn: true, guest.KindCopyOut: true,
	guest.KindStat: true, guest.KindWaitSystem: true, guest.KindBenchSpawn: true, guest.KindMount: true,
	guest.KindSSH: true,
}

// ServeStream is the endpoint of api.StreamPath: it connects a client to the agent
// of a VM.
func (s *Service) ServeStream(w http.ResponseWriter, r *http.Request) {
	v, err := s.streamTarget(r)
	if err != nil {
		relay.WriteError(w, err)
		return
	}
	client, req, err := relay.Accept(w, r)
	if err != nil {
		s.Log.Debug("accept a stream", logkey.VM, v.ID, logkey.Err, err)
		return
	}
	defer func() { _ = client.Close() }()
	if req.Ephemeral && v.Spec.AutoRemove {
		defer s.expire(v)
	}
	if !forwarded[req.Kind] {
		relay.Fail(client, errdefs.Permission("request %q is not for clients", req.Kind))
		return
	}
	if req.Kind == guest.KindSSH {
		if err := s.addHostKey(v, req.SSH); err != nil {
			relay.Fail(client, err)
			return
		}
	}
	agent, err := s.OpenAgent(r.Context(), v.ID, req)
	if err != nil {
		relay.Fail(client, err)
		return
	}
	relay.Splice(client, agent)
}

func (s *Service) streamTarget(r *http.Request) (*model.VM, error) {
	if err := relay.Check(r); err != nil {
		return nil, err
	}
	v, err := s.Store.FindVM(r.Context(), r.PathValue("ref"))
	if err != nil {
		return nil, err
	}
	_, err = s.running(&v)
	return &v, err
}

// OpenAgent opens a stream to the agent of a running VM and sends req on it.
func (s *Service) OpenAgent(ctx context.Context, id string, req guest.Request) (net.Conn, error) {
	l := s.lookup(id)
	if l == nil {
		return nil, errdefs.Precondition("vm %s is not running", id)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), streamOpenTimeout)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)() // Close waits for who connects
	done := s.use(id, string(req.Kind))
	agent, err := l.open(ctx)
	if err == nil {
		if err = guest.WriteRequest(ctx, agent, req); err == nil {
			return &used{Conn: l.lease.hold(agent), done: done}, nil
		}
		_ = agent.Close()
	}
	done()
	return nil, reachError(id, err)
}

// CheckRunning resolves ref to the id of a VM that runs now. It holds the VM's
// claim just long enough to look, so a VM on its way up or down is waited for.
func (s *Service) CheckRunning(ctx context.Context, ref string) (string, error) {
	v, err := s.Store.FindVM(ctx, ref)
	if err != nil {
		return "", err
	}
	_, held, err := s.claim(ctx, v.ID, "check")
	if err != nil {
		return "", err
	}
	defer held.Release()
	if v, err = s.Store.GetVM(ctx, v.ID); err != nil {
		return "", err
	}
	_, err = s.running(&v)
	return v.ID, err
}

// expire deletes a VM whose client is done with it, whatever became of the client.
func (s *Service) expire(v *model.VM) {
	s.Ops.Begin("vm.delete", v.Name, func(ctx context.Context, _ model.Progress) (string, error) {
		return v.ID, s.remove(ctx, v.ID, true)
	})
}
