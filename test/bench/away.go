package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// away puts a server at a distance: what its connections carry arrives half a round trip later, in each direction. It returns
// the address that stands for the server's, until ctx ends.
func away(ctx context.Context, server string, roundTrip time.Duration) (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("putting a server away: %w", err)
	}
	context.AfterFunc(ctx, func() { _ = listener.Close() })
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go relay(ctx, client, server, roundTrip/2)
		}
	}()
	return listener.Addr().String(), nil
}

func relay(ctx context.Context, client net.Conn, address string, delay time.Duration) {
	defer func() { _ = client.Close() }()
	server, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	stop := context.AfterFunc(ctx, func() { _, _ = client.Close(), server.Close() })
	defer stop()
	var both sync.WaitGroup
	both.Go(func() { carry(server, client, delay) })
	both.Go(func() { carry(client, server, delay) })
	both.Wait()
}

// carry copies from one connection to another, late, and ends both when either does.
func carry(to, from net.Conn, delay time.Duration) {
	type parcel struct {
		content []byte
		due     time.Time
	}
	parcels := make(chan parcel, 1024)
	go func() {
		defer close(parcels)
		for {
			buffer := make([]byte, 32<<10)
			n, err := from.Read(buffer)
			if n > 0 {
				parcels <- parcel{buffer[:n], time.Now().Add(delay)}
			}
			if err != nil {
				return
			}
		}
	}()
	for p := range parcels {
		<-time.After(time.Until(p.due))
		if _, err := to.Write(p.content); err != nil {
			break
		}
	}
	_, _ = to.Close(), from.Close()
	for range parcels { // until the reader has noticed
	}
}

// silent listens at n addresses and never answers, until ctx ends: then what was connected is cut off.
func silent(ctx context.Context, n int) (addresses []string, err error) {
	for range n {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("listening without answering: %w", err)
		}
		context.AfterFunc(ctx, func() { _ = listener.Close() })
		addresses = append(addresses, "http://"+listener.Addr().String())
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				context.AfterFunc(ctx, func() { _ = conn.Close() })
				go func() { _, _ = io.Copy(io.Discard, conn) }()
			}
		}()
	}
	return addresses, nil
}
